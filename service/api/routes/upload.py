"""Multipart forms, parsed while they arrive.

The file goes straight to the store and is never held in memory as a whole; its size is checked on the way. FastAPI's
own forms spool a whole upload before the handler sees it, which is too late to refuse one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from service.api.request_limits import RequestLimits
from service.api.timeouts import read_with_timeouts
from service.errors import InvalidInput, TooLarge
from service.ingestion.ingest import Ingest
from service.models import MAX_CAPTION_CHARACTERS
from service.storage import IncomingUpload

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_Default = TypeVar("_Default", int, int | None)
_FIELD_BYTES = 8 * MAX_CAPTION_CHARACTERS
_OVERHEAD_BYTES = 1 << 20


@dataclass
class Form:
    """A form that was read to its end.

    `incoming` is finished: its hash is known and its bytes are synced to disk.
    """

    incoming: IncomingUpload
    filename: str | None = None
    values: dict[str, list[str]] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """Return a text field, None if it was omitted, or the last value if it was sent several times."""
        return self.values.get(name, [None])[-1]

    def integer(self, name: str, default: _Default) -> int | _Default:
        """Return a field as an integer, or `default` if it is omitted or empty. Raises InvalidInput."""
        text = (self.text(name) or "").strip()
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise InvalidInput(name, f"must be an integer, not {text[:100]!r}") from None


@asynccontextmanager
async def receive_form(request: Request, ingest: Ingest, names: frozenset[str]) -> AsyncIterator[Form]:
    """Yield the form of a request whose text fields are `names` and whose file is `file`.

    The path of a route that calls this must be among `UPLOAD_PATHS` of `request_limits`: the limit of other bodies is
    far lower.

    Raises:
        InvalidInput: If the form is broken or incomplete, or has other fields.
        TooLarge: If the file exceeds the limit; raised as soon as that is known.
        TooSlow: If the client sends too slowly.
        Overloaded: If too many uploads are in progress; raised before anything is read.
    """
    request_limits: RequestLimits = request.app.state.request_limits
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidInput("file", "the request body must be multipart/form-data with a part `file`")
    with request_limits.uploads.acquire(), ingest.receive() as incoming:
        content_length = request.headers.get("content-length", "")
        if content_length.isdigit() and int(content_length) > incoming.limit_bytes + _OVERHEAD_BYTES:
            size = f"the upload has {int(content_length):,} bytes"
            raise TooLarge(f"{size}; at most {incoming.limit_bytes:,} are allowed")
        reader = _Reader(Form(incoming), names)
        parser = MultipartParser(boundary, reader.callbacks())
        try:
            async for chunk in read_with_timeouts(request.stream(), request_limits.timeouts):
                parser.write(chunk)
                if reader.file_data:
                    data = b"".join(reader.file_data)
                    reader.file_data.clear()
                    await run_in_threadpool(incoming.write, data)
            parser.finalize()
        except MultipartParseError as error:
            raise InvalidInput("file", f"the multipart form is malformed: {error}") from error
        if not reader.ended:
            raise InvalidInput("file", "the multipart form is incomplete: its closing boundary is missing")
        if not reader.has_file:
            raise InvalidInput("file", "missing; the form needs a part `file` with a file name")
        await run_in_threadpool(incoming.finish)
        yield reader.form


class _Reader:
    """Builds a form from the events of the parser.

    Bytes of the file are kept only until they are written to the store.
    """

    def __init__(self, form: Form, names: frozenset[str]) -> None:
        self.form = form
        self.file_data: list[bytes] = []
        self.has_file = False
        self.ended = False
        self._names = names
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._field: str | None = None  # None while the part is the file
        self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks for the parser of python-multipart."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_content,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers, self._value = {}, b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_content(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file" and b"filename" in options:
            if self.has_file:
                raise InvalidInput("file", "must be sent once; the form has several parts `file`")
            self.has_file, self._field = True, None
            self.form.filename = options[b"filename"].decode("utf-8", "replace")
        elif name == "file":
            raise InvalidInput("file", "must be a file; this part has no file name")
        elif name in self._names:
            self._field = name
        else:
            known = ", ".join(sorted({"file", *self._names}))
            raise InvalidInput(name[:100] or "file", f"unknown field; the form accepts {known}")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.file_data.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _FIELD_BYTES:
            raise InvalidInput(self._field, f"must have at most {_FIELD_BYTES:,} bytes")

    def _part_end(self) -> None:
        if self._field is not None:
            try:
                self.form.values.setdefault(self._field, []).append(self._value.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InvalidInput(self._field, "must be UTF-8 text") from error

    def _end(self) -> None:
        self.ended = True
