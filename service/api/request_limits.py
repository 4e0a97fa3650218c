"""Limits of requests: how many at a time, how many a minute, how large.

`RequestLimitsMiddleware` applies the limits of ordinary requests; the handlers apply the limit of uploads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.timeouts import ClientTimeouts
from service.config import Settings
from service.errors import Overloaded, TooLarge, TooSlow

# Limit for a body that is not an upload: ten times the size of the longest list of ids.
MAX_BODY_BYTES = 4 << 20
# Each request that waits for a video queries the database ten times a second.
_MAX_WATCHERS = 256

# Answered under any load, because they report the load.
_UNLIMITED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
# These receive files. The handler applies the limit of uploads, after the API key was checked.
UPLOAD_PATHS = frozenset({"/v1/videos", "/v1/search/image", "/v1/search/video"})
"""Paths of the routes that receive files."""


class ConcurrencyLimit:
    """Limits how many requests run at a time to `limit`.

    Only the event loop uses it, so no lock is needed.
    """

    def __init__(self, limit: int, noun: str, retry_after_seconds: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._noun = noun
        self._retry_after_seconds = retry_after_seconds

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Take one of the `limit` places until the block ends.

        Raises Overloaded at once if all are in use.
        """
        if self.in_use >= self.limit:
            raise Overloaded(
                f"too many {self._noun}: at most {self.limit} at a time; try again in {self._retry_after_seconds} s",
                self._retry_after_seconds,
            )
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1


class RequestLimits:
    """All limits of one application: of concurrent requests and of requests a minute."""

    def __init__(self, settings: Settings, timeouts: ClientTimeouts) -> None:
        self.timeouts = timeouts
        self.requests = ConcurrencyLimit(settings.max_requests, "requests", 1)
        self.uploads = ConcurrencyLimit(settings.max_uploads, "uploads", 5)
        self.watchers = ConcurrencyLimit(_MAX_WATCHERS, "requests that wait for a video", 5)
        self._rate = (
            None if settings.requests_per_minute is None else RateLimitItemPerMinute(settings.requests_per_minute)
        )
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @property
    def is_busy(self) -> bool:
        """Whether three quarters of the request limit are in use: a load balancer should prefer another server."""
        return self.requests.in_use >= self.requests.limit * 3 / 4

    def count_request(self, client: str) -> None:
        """Count one more request of `client`. Raises Overloaded if the last minute had too many."""
        if self._rate is not None and not self._limiter.hit(self._rate, client):
            left = self._limiter.get_window_stats(self._rate, client).reset_time - time.time()
            seconds = max(1, math.ceil(left))
            raise Overloaded(
                f"too many requests: at most {self._rate.amount} a minute; try again in {seconds} s", seconds
            )


class RequestLimitsMiddleware:
    """ASGI middleware that applies the limits to all requests.

    Bodies that are not uploads are read here completely, within limits of size and time, before the request counts as
    running. `to_response` turns an error into a response.
    """

    def __init__(
        self,
        app: ASGIApp,
        request_limits: RequestLimits,
        to_response: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._request_limits = request_limits
        self._to_response = to_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        read = scope["type"] != "http" or not _has_body(scope)
        if scope["type"] != "http" or (read and scope["path"] in _UNLIMITED_PATHS):
            await self._app(scope, receive, send)
            return

        async def receive_and_track() -> Message:
            nonlocal read
            message = await receive()
            read = read or not message.get("more_body", False)
            return message

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and not read:
                # The rest of the body stays unread. If the connection stayed open, that rest would be parsed as the
                # next request, or the server would have to wait for it.
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif not read and not message.get("more_body", False):
                # If the connection closed now, a client that is still sending would see an error, not the response.
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
                await self._discard_rest(receive_and_track)
            await send(message)

        try:
            if scope["method"] == "POST" and scope["path"] in UPLOAD_PATHS:
                await self._app(scope, receive_and_track, send_and_close)
                return
            if not read:
                receive = _replay(await self._read_body(receive_and_track), receive)
            limit = (
                self._request_limits.watchers if scope["path"].endswith("/events") else self._request_limits.requests
            )
            with limit.acquire():
                await self._app(scope, receive, send_and_close)
        except (Overloaded, TooLarge, TooSlow) as error:
            response = await self._to_response(Request(scope), error)
            await response(scope, receive, send_and_close)
        except ClientDisconnect:
            pass  # no client is left to answer

    async def _discard_rest(self, receive: Receive) -> None:
        """Discard the rest of the request body until it ends or `linger_seconds` have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._request_limits.timeouts.linger_seconds):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    async def _read_body(self, receive: Receive) -> bytes:
        """Return the whole request body. Raises TooLarge, TooSlow and ClientDisconnect."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._request_limits.timeouts.headers_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise TooLarge(f"request body: at most {MAX_BODY_BYTES:,} bytes are allowed")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._request_limits.timeouts.headers_seconds
            raise TooSlow(f"request body: did not arrive within {seconds:g} s") from None


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))
        for name, value in scope["headers"]
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body as one message, then the messages of the given `receive`."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body
