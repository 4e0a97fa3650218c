"""Responses with binary data, which are not sent again to a client that has them already.

Clips and frame images are sent by the framework from a local file, or streamed from the object store, whole or as the
range that a player requests. Data that was compressed once is sent compressed, or decompressed for a client without
gzip. The framework's middleware would compress every response again, and treats `gzip;q=0` as a yes.
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


def blob_response(
    request: Request, blob: Blob, *, media_type: str, etag: str, headers: Mapping[str, str], filename: str | None = None
) -> Response:
    """Return a response with the bytes of the blob, or a range of them.

    `etag` identifies the bytes: a client that has them gets status 304. If a blob of the object store is requested in
    several ranges, the response is the whole blob, as RFC 9110 (14.2) allows.
    """
    tag = f'"{etag}"'
    response_headers = {**headers, "Accept-Ranges": "bytes", "ETag": tag}
    if filename is not None:
        response_headers["Content-Disposition"] = FileResponse(
            "", filename=filename, content_disposition_type="inline"
        ).headers["content-disposition"]
    if _is_known(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=response_headers)
    if blob.path is not None:
        return FileResponse(blob.path, media_type=media_type, headers=response_headers)
    start, stop, size = 0, blob.size_bytes, blob.size_bytes
    range_match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if range_match and range_match.group(0) != "bytes=-" and request.headers.get("if-range", tag) == tag:
        first, last = range_match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size or start >= stop:
            return PlainTextResponse("the range lies outside the file", 416, {"Content-Range": f"bytes */{size}"})
        response_headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response_headers["Content-Length"] = str(stop - start)
    status = 206 if "Content-Range" in response_headers else 200
    return StreamingResponse(blob.pieces(start, stop, piece_bytes=_CHUNK_BYTES), status, response_headers, media_type)


def gzip_response(
    tag: str, body: bytes, media_type: str, *, vary: str, accept_encoding: str, if_none_match: str | None
) -> Response:
    """Return a response from a `body` that is compressed with gzip already, or status 304 if the client has it.

    A client without gzip gets the body decompressed. `tag` identifies the content, compressed or not, so it becomes a
    weak ETag.
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
    """Return whether a client accepts gzip, by its Accept-Encoding header (RFC 9110, 12.5.3)."""
    qualities = {name.lower(): float(quality or 1) for name, quality in _GZIP.findall(accept_encoding)}
    return qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0))) > 0


def _is_known(if_none_match: str | None, tag: str) -> bool:
    """Return whether a client has the content, by its If-None-Match header (RFC 9110, 13.1.2)."""
    given = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return tag in given or given == ["*"]
