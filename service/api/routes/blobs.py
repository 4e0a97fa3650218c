"""Answers that are bytes with a name: not sent again to a client that has them.

Clips and pictures come from a file of this machine, which the framework sends, or are handed on from the store that
keeps them, whole or the range that a player asks for. What was compressed once is sent so or unpacked: the framework's
middleware would compress it for each answer, and takes `gzip;q=0` for a yes.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping

from fastapi import Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from service.models import Blob

_CHUNK_BYTES = 1 << 20
_GZIP = re.compile(r"(?:^|,)\s*(gzip|x-gzip|\*)\s*(?:;\s*q=([01](?:\.\d*)?)\s*)?(?=,|$)", re.IGNORECASE)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def served(
    request: Request, blob: Blob, *, media_type: str, etag: str, headers: Mapping[str, str], filename: str | None = None
) -> Response:
    """The bytes; `etag` names them, so that a browser which has them need not fetch them again.

    Of several ranges at once the whole is given, as RFC 9110 (14.2) allows.
    """
    tag = f'"{etag}"'
    given = {**headers, "Accept-Ranges": "bytes", "ETag": tag}
    if filename is not None:
        given["Content-Disposition"] = FileResponse("", filename=filename, content_disposition_type="inline").headers[
            "content-disposition"
        ]
    if _is_known(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=given)
    if blob.path is not None:
        return FileResponse(blob.path, media_type=media_type, headers=given)
    start, stop, size = 0, blob.size_bytes, blob.size_bytes
    wanted = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if wanted and wanted.group(0) != "bytes=-" and request.headers.get("if-range", tag) == tag:
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size or start >= stop:
            return PlainTextResponse("the range lies outside the file", 416, {"Content-Range": f"bytes */{size}"})
        given["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    given["Content-Length"] = str(stop - start)
    status = 206 if "Content-Range" in given else 200
    return StreamingResponse(blob.pieces(start, stop, piece_bytes=_CHUNK_BYTES), status, given, media_type)


def compressed(
    tag: str, body: bytes, media_type: str, *, vary: str, accept_encoding: str, if_none_match: str | None
) -> Response:
    """An answer whose `body` is compressed with gzip already, as it is or unpacked, or 304 where the client has it.

    `tag` names what is in it, compressed or not, so it becomes a weak ETag.
    """
    headers = {"ETag": f'W/"{tag}"', "Vary": vary, "Cache-Control": "private, no-cache"}
    if _is_known(if_none_match, f'"{tag}"'):
        return Response(status_code=304, headers=headers)
    if accepts_gzip(accept_encoding):
        headers["Content-Encoding"] = "gzip"
    else:
        body = gzip.decompress(body)
    return Response(body, media_type=media_type, headers=headers)


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a client takes it, by the value of Accept-Encoding (RFC 9110, 12.5.3)."""
    qualities = {name.lower(): float(quality or 1) for name, quality in _GZIP.findall(accept_encoding)}
    return qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0))) > 0


def _is_known(if_none_match: str | None, tag: str) -> bool:
    """Whether a client has it, by the value of If-None-Match (RFC 9110, 13.1.2)."""
    given = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return tag in given or given == ["*"]
