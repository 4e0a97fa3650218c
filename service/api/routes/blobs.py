"""Answers that are stored bytes, whole or the range that a player asks for: from a file of this machine, or handed on
from the store that keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi import Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from service.models import Blob

_CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def served(
    request: Request, blob: Blob, *, media_type: str, etag: str, headers: Mapping[str, str], filename: str | None = None
) -> Response:
    """The bytes; `etag` names them, so that a browser which has them need not fetch them again.

    Of several ranges at once the whole is given, as RFC 9110 (14.2) allows.
    """
    if blob.path is not None:
        return FileResponse(
            blob.path,
            media_type=media_type,
            filename=filename,
            content_disposition_type="inline",
            headers=dict(headers),
        )
    tag = f'"{etag}"'
    given = {**headers, "Accept-Ranges": "bytes", "ETag": tag}
    if filename is not None:
        given["Content-Disposition"] = FileResponse("", filename=filename, content_disposition_type="inline").headers[
            "content-disposition"
        ]
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=given)
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
