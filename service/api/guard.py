"""What stands between the service and everyone who can reach it: gates, patience, and who may connect at all.

A gate lets so many through at a time and answers the next at once. Patience ends with those who send or take too
slowly. Knows no resource: the handlers say what goes through which gate.
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

# Of a body that is no upload: ten times what the longest list of ids takes.
MAX_BODY_BYTES = 4 << 20
# Those who wait for a video ask the database ten times a second each.
_MAX_WATCHERS = 256

_UNSENT_BYTES = 1 << 17

# Answered however much there is to do: they say how much that is.
_OPEN = frozenset({"/livez", "/readyz", "/metrics"})
# Files come in here, through a gate of their own once it is known who sends them.
_UPLOADS = frozenset({"/v1/videos", "/v1/search/image", "/v1/search/video"})


@dataclass(frozen=True)
class Patience:
    """How long a client may take."""

    headers_seconds: float = 10  # until a request's headers are there; and once more until its body is, if no upload
    silence_seconds: float = 30  # between two pieces of an upload
    start_seconds: float = 60  # of waiting, after which an upload must have come at the rate below
    bytes_per_second: float = 1024
    taking_seconds: float = 60  # in which nothing of an answer is taken
    lingering_seconds: float = 2  # in which the rest of a refused body is thrown away, before the connection is closed


class Gate:
    """Lets at most `limit` through at a time. Used by the event loop alone, so it needs no lock."""

    def __init__(self, limit: int, what: str, retry_after_seconds: int) -> None:
        self.limit = limit
        self.inside = 0
        self._what = what
        self._retry_after_seconds = retry_after_seconds

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Inside until the block ends. Raises Overloaded at once where there is no room."""
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
        """Near the bound: whoever distributes requests should send the next elsewhere."""
        return self.requests.inside >= self.requests.limit * 3 / 4

    def count(self, who: str) -> None:
        """One more request of `who`. Raises Overloaded where the last minute had too many."""
        if self._rate is not None and not self._limiter.hit(self._rate, who):
            left = self._limiter.get_window_stats(self._rate, who).reset_time - time.time()
            raise Overloaded(f"{self._rate.amount} requests a minute are taken", max(1, math.ceil(left)))


class Guard:
    """The gate of all requests, around the application. `answer` makes an error into an answer.

    Bodies that are no uploads are read here, within bounds of size and time, before they take a place.
    """

    def __init__(self, app: ASGIApp, gates: Gates, answer: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._gates = gates
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
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
                # The rest of the body is not read: it would be taken for the next request, or have to be waited for.
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif not read and not message.get("more_body", False):
                # A client that is still sending would be told of a broken connection, and not of the answer.
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
            pass  # nobody is there to be answered

    async def _linger(self, receive: Receive) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._gates.patience.lingering_seconds):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    async def _body(self, receive: Receive) -> bytes:
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
    """The body as one message, then what comes."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


async def patiently(chunks: AsyncIterator[bytes], patience: Patience) -> AsyncIterator[bytes]:
    """An upload's pieces. Raises TooSlow where none comes, or too few bytes do; our time with them counts not."""
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


# --- who may connect at all


def only_here(host: str) -> bool:
    """Whether nobody but this machine can reach a server on this address."""
    if host == "localhost":
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}  # noqa: S104 - "" is that
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def check_address(settings: Settings, *, any_key: bool) -> None:
    """Raises ConfigurationError where strangers could reach a service that asks nobody for a key."""
    if any_key or settings.api_keys or settings.allow_anyone or only_here(settings.host):
        return
    raise ConfigurationError(
        f"others can reach {settings.host or 'every address'}, and there is no API key to keep them out: make one with "
        "`reelsrs keys create NAME --rights read`, or let anyone in with REELSRS_ALLOW_ANYONE=true"
    )


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: every connection is one."""
    import resource  # which Windows has not

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS has a hard limit of infinity, and means less
        log.warning("the limit of open files stays", soft=soft, hard=hard, reason=str(error))


class Protocol(HttpToolsProtocol):
    """uvicorn's, which waits for ever: for headers that do not come, and for answers that are not taken."""

    patience = Patience()
    _due: asyncio.TimerHandle | None = None  # when the headers must be there
    _stalled: asyncio.TimerHandle | None = None
    _in_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock begins with the connection."""
        super().connection_made(transport)
        # By default the system takes megabytes for a slow client, and then nothing for as long as it takes to send the
        # third part of them, which would look as if the client took nothing.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as ours:
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """No clock outlives it."""
        self._headers_are_there()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of the next request, perhaps, or empty lines before it, which the parser does not tell of."""
        if not self._in_message:
            self._expect_headers()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The next request may begin in the bytes that end the one before."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """In time."""
        self._headers_are_there()
        self._in_message = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes now is another request."""
        super().on_message_complete()
        self._in_message = False

    def on_response_complete(self) -> None:
        """The last of an answer may still wait to be taken, below the mark at which writing is paused."""
        super().on_response_complete()
        self._expect_taking()

    def pause_writing(self) -> None:
        """The client takes less than there is."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """It took enough for more."""
        super().resume_writing()
        self._taken()

    def send_400_response(self, msg: str) -> None:
        """As a problem, like all other errors."""
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
            self._expect_headers()  # the request before is being answered; the bytes behind it can wait
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
        self._stalled = None
        if self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self._expect_taking()
