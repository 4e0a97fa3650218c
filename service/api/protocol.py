"""Connections of the HTTP server, with time limits for slow clients."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from http import HTTPStatus

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.timeouts import ClientTimeouts

log = structlog.get_logger(__name__)

_UNSENT_BYTES = 1 << 17


def allow_many_connections() -> None:
    """Raise the limit of open files to the hard limit, because every connection is an open file."""
    import resource  # missing on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS reports no hard limit, but accepts less
        log.warning("limit of open files not raised", soft=soft, hard=hard, reason=str(error))


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with time limits for slow clients.

    uvicorn itself waits without limit for headers that do not arrive and for clients that do not read the response. The
    header timeout closes the connection in the first case, the stall timeout in the second.
    """

    timeouts = ClientTimeouts()
    _header_timeout: asyncio.TimerHandle | None = None  # the header timeout
    _stall_timeout: asyncio.TimerHandle | None = None  # the stall timeout
    _in_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timeout when the connection opens."""
        super().connection_made(transport)
        # By default the kernel buffers megabytes for a slow client. Then it accepts nothing more until it has sent a
        # third of them, which would look as if the client read nothing.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as ours:
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._start_header_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timeouts when the connection ends."""
        self._cancel_header_timeout()
        self._cancel_stall_timeout()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the header timeout if the data lies outside a message.

        Such data is the next request, or empty lines before it, which the parser does not report.
        """
        if not self._in_message:
            self._start_header_timeout()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start the header timeout: a request may begin in the bytes that end the previous one."""
        super().on_message_begin()
        self._start_header_timeout()

    def on_headers_complete(self) -> None:
        """Cancel the header timeout."""
        self._cancel_header_timeout()
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
        self._start_stall_timeout()

    def pause_writing(self) -> None:
        """Start the stall timeout: the client reads more slowly than the response is written."""
        super().pause_writing()
        self._start_stall_timeout()

    def resume_writing(self) -> None:
        """Cancel the stall timeout: the client has read enough for writing to go on."""
        super().resume_writing()
        self._cancel_stall_timeout()

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

    def _start_header_timeout(self) -> None:
        if self._header_timeout is None:
            self._header_timeout = self.loop.call_later(self.timeouts.headers_seconds, self._on_header_timeout)

    def _cancel_header_timeout(self) -> None:
        if self._header_timeout is not None:
            self._header_timeout.cancel()
            self._header_timeout = None

    def _on_header_timeout(self) -> None:
        self._header_timeout = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_header_timeout()  # the previous request is still being answered; later bytes can wait
        else:
            self.transport.abort()

    def _start_stall_timeout(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._stall_timeout is None:
            self._stall_timeout = self.loop.call_later(self.timeouts.stall_seconds, self._on_stall_timeout, left)

    def _cancel_stall_timeout(self) -> None:
        if self._stall_timeout is not None:
            self._stall_timeout.cancel()
            self._stall_timeout = None

    def _on_stall_timeout(self, left: int) -> None:
        """Abort the connection if nothing was sent since the stall timeout started, else restart it."""
        self._stall_timeout = None
        if self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self._start_stall_timeout()
