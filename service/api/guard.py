"""Protection against overload, slow clients and unintended public access.

A gate limits how many requests run at a time and refuses the next one at once. Timeouts end connections whose client
sends or receives too slowly. A service without API keys does not start on an address that others can reach. `Guard`
applies the gate of ordinary requests; the handlers apply the gate of uploads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.config import Settings
from service.errors import ConfigurationError, Overloaded, TooLarge, TooSlow

log = structlog.get_logger(__name__)

# Limit for a body that is not an upload: ten times the size of the longest list of ids.
MAX_BODY_BYTES = 4 << 20
# Each request that waits for a video queries the database ten times a second.
_MAX_WATCHERS = 256

_UNSENT_BYTES = 1 << 17

# Answered under any load, because they report the load.
_OPEN = frozenset({"/livez", "/readyz", "/metrics"})
# These receive files. The handler applies the gate of uploads, after the API key was checked.
_UPLOADS = frozenset({"/v1/videos", "/v1/search/image", "/v1/search/video"})


@dataclass(frozen=True)
class Patience:
    """Time limits and minimum rate for clients."""

    headers_seconds: float = 10  # to send the headers; the same again for a body that is not an upload
    silence_seconds: float = 30  # between two chunks of an upload
    start_seconds: float = 60  # of waiting for an upload, after which the rate below is required
    bytes_per_second: float = 1024
    taking_seconds: float = 60  # without the client reading any of a response
    lingering_seconds: float = 2  # to discard the rest of a refused body, before the connection is closed


class Gate:
    """Limits how many requests run at a time to `limit`.

    Only the event loop uses a gate, so no lock is needed.
    """

    def __init__(self, limit: int, what: str, retry_after_seconds: int) -> None:
        self.limit = limit
        self.inside = 0
        self._what = what
        self._retry_after_seconds = retry_after_seconds

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Hold a place in the gate until the block ends.

        Raises Overloaded at once if the gate is full.
        """
        if self.inside >= self.limit:
            raise Overloaded(
                f"{self.limit} {self._what} at a time are taken; try again in a moment", self._retry_after_seconds
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Gates:
    """All gates of one application, and its rate limit."""

    def __init__(self, settings: Settings, patience: Patience) -> None:
        self.patience = patience
        self.requests = Gate(settings.max_requests, "requests", 1)
        self.uploads = Gate(settings.max_uploads, "uploads", 5)
        self.watchers = Gate(_MAX_WATCHERS, "requests that wait for a video", 5)
        self._rate = (
            None if settings.requests_per_minute is None else RateLimitItemPerMinute(settings.requests_per_minute)
        )
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @property
    def busy(self) -> bool:
        """Whether three quarters of the request limit are in use: a load balancer should prefer another server."""
        return self.requests.inside >= self.requests.limit * 3 / 4

    def count(self, who: str) -> None:
        """Count one more request of the client `who`. Raises Overloaded if the last minute had too many."""
        if self._rate is not None and not self._limiter.hit(self._rate, who):
            left = self._limiter.get_window_stats(self._rate, who).reset_time - time.time()
            raise Overloaded(f"{self._rate.amount} requests a minute are taken", max(1, math.ceil(left)))


class Guard:
    """ASGI middleware that applies the gates to all requests.

    Bodies that are not uploads are read here completely, within limits of size and time, before the request takes a
    place in a gate. `answer` turns an error into a response.
    """

    def __init__(self, app: ASGIApp, gates: Gates, answer: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._gates = gates
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        read = scope["type"] != "http" or not _has_body(scope)
        if scope["type"] != "http" or (read and scope["path"] in _OPEN):
            await self._app(scope, receive, send)
            return

        async def receive_and_see() -> Message:
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
                await self._linger(receive_and_see)
            await send(message)

        try:
            if scope["method"] == "POST" and scope["path"] in _UPLOADS:
                await self._app(scope, receive_and_see, send_and_close)
                return
            if not read:
                receive = _again(await self._body(receive_and_see), receive)
            gate = self._gates.watchers if scope["path"].endswith("/events") else self._gates.requests
            with gate.passing():
                await self._app(scope, receive, send_and_close)
        except (Overloaded, TooLarge, TooSlow) as error:
            response = await self._answer(Request(scope), error)
            await response(scope, receive, send_and_close)
        except ClientDisconnect:
            pass  # no client is left to answer

    async def _linger(self, receive: Receive) -> None:
        """Discard the rest of the request body until it ends or `lingering_seconds` have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._gates.patience.lingering_seconds):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    async def _body(self, receive: Receive) -> bytes:
        """Return the whole request body. Raises TooLarge, TooSlow and ClientDisconnect."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._gates.patience.headers_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES:
                        raise TooLarge(f"the body is larger than {MAX_BODY_BYTES:,} bytes")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise TooSlow(f"the body did not come within {self._gates.patience.headers_seconds:g} s") from None


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))
        for name, value in scope["headers"]
    )


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body as one message, then the messages of the given `receive`."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


async def patiently(chunks: AsyncIterator[bytes], patience: Patience) -> AsyncIterator[bytes]:
    """Yield the chunks of an upload. Raises TooSlow if the client sends too slowly.

    Too slow means no chunk within `silence_seconds`, or an average below `bytes_per_second` once `start_seconds` were
    spent waiting. Only time spent waiting for the client counts, not the time that the caller takes for each chunk.
    """
    waited, received = 0.0, 0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience.silence_seconds):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise TooSlow(f"no byte of the upload came for {patience.silence_seconds:g} s") from None
        if chunk is None:
            return
        waited += time.monotonic() - began
        received += len(chunk)
        if waited > patience.start_seconds and received < patience.bytes_per_second * waited:
            raise TooSlow(f"the upload came more slowly than {patience.bytes_per_second:g} bytes a second")
        yield chunk


# --- access and connections


def only_here(host: str) -> bool:
    """Return whether a server on this address can be reached from this machine only.

    A host name that cannot be resolved counts as reachable by others.
    """
    if host == "localhost":
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}  # noqa: S104 - "" is that
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def check_address(settings: Settings, *, any_key: bool) -> None:
    """Raise ConfigurationError if other machines can reach the service and no API key is needed.

    `any_key` says whether the database holds an API key. Keys in the settings and `allow_anyone` also permit any
    address.
    """
    if any_key or settings.api_keys or settings.allow_anyone or only_here(settings.host):
        return
    raise ConfigurationError(
        f"others can reach {settings.host or 'every address'}, and there is no API key to keep them out: make one with "
        "`reelsrs keys create NAME --rights read`, or let anyone in with REELSRS_ALLOW_ANYONE=true"
    )


def allow_many_connections() -> None:
    """Raise the limit of open files to the hard limit, because every connection is an open file."""
    import resource  # missing on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS reports no hard limit, but accepts less
        log.warning("the limit of open files stays", soft=soft, hard=hard, reason=str(error))


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with time limits for slow clients.

    uvicorn itself waits without limit for headers that do not arrive and for clients that do not read the response. The
    header timeout closes the connection in the first case, the stall timeout in the second.
    """

    patience = Patience()
    _due: asyncio.TimerHandle | None = None  # the header timeout
    _stalled: asyncio.TimerHandle | None = None  # the stall timeout
    _in_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timeout when the connection opens."""
        super().connection_made(transport)
        # By default the kernel buffers megabytes for a slow client. Then it accepts nothing more until it has sent a
        # third of them, which would look as if the client read nothing.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as ours:
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timeouts when the connection ends."""
        self._headers_are_there()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the header timeout if the data lies outside a message.

        Such data is the next request, or empty lines before it, which the parser does not report.
        """
        if not self._in_message:
            self._expect_headers()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start the header timeout: a request may begin in the bytes that end the previous one."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Cancel the header timeout."""
        self._headers_are_there()
        self._in_message = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Mark the message as ended: data that follows belongs to another request."""
        super().on_message_complete()
        self._in_message = False

    def on_response_complete(self) -> None:
        """Start the stall timeout if a part of the response is still unsent.

        The unsent rest may be too small to have paused writing.
        """
        super().on_response_complete()
        self._expect_taking()

    def pause_writing(self) -> None:
        """Start the stall timeout: the client reads more slowly than the response is written."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """Cancel the stall timeout: the client has read enough for writing to go on."""
        super().resume_writing()
        self._taken()

    def send_400_response(self, msg: str) -> None:
        """Answer with status 400 as application/problem+json, like all other errors, and close."""
        status = HTTPStatus.BAD_REQUEST
        problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": msg}
        body = json.dumps(problem).encode()
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()

    def _expect_headers(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(self.patience.headers_seconds, self._no_headers)

    def _headers_are_there(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _no_headers(self) -> None:
        self._due = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_headers()  # the previous request is still being answered; later bytes can wait
        else:
            self.transport.abort()

    def _expect_taking(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._stalled is None:
            self._stalled = self.loop.call_later(self.patience.taking_seconds, self._check_taking, left)

    def _taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _check_taking(self, left: int) -> None:
        """Abort the connection if nothing was sent since the stall timeout started, else restart it."""
        self._stalled = None
        if self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self._expect_taking()
