"""Tests of conditional requests (ETag, 304) and gzip negotiation for stored bytes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fastapi import Request
from fastapi.responses import FileResponse

from service.api.routes.blobs import accepts_gzip, blob_response, gzip_response
from service.models import Blob


@pytest.mark.parametrize(
    ("accept_encoding", "takes"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        ("deflate, GZIP ; q=0.5", True),
        ("x-gzip", True),
        ("*", True),
        ("gzip;q=1.000", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0, *", False),
        ("*;q=0", False),
        ("notgzip, gzipped", False),
    ],
)
def test_who_takes_gzip(accept_encoding: str, takes: bool) -> None:
    assert accepts_gzip(accept_encoding) is takes
    answer = gzip_response(
        "t", gzip.compress(b"body"), "text/plain", vary="", accept_encoding=accept_encoding, if_none_match=None
    )
    assert ("content-encoding" in answer.headers) is takes
    assert (gzip.decompress(bytes(answer.body)) if takes else bytes(answer.body)) == b"body"


@pytest.mark.parametrize(
    ("if_none_match", "known"),
    [
        ('"t"', True),
        ('W/"t"', True),
        ('"other", "t"', True),
        ("*", True),
        ('"other"', False),
        ("t", False),
        ('"t', False),
        ("", False),
        (None, False),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_what_a_client_has_is_not_sent_again(
    if_none_match: str | None, known: bool, local: bool, tmp_path: Path
) -> None:
    file = tmp_path / "clip"
    file.write_bytes(b"body")
    blob = Blob(4, lambda start, length: b"body"[start : start + length], file if local else None)
    given = [] if if_none_match is None else [(b"if-none-match", if_none_match.encode())]
    request = Request({"type": "http", "method": "GET", "headers": given})
    answer = blob_response(request, blob, media_type="video/mp4", etag="t", headers={"X": "1"}, filename="a b.mp4")
    assert answer.status_code == (304 if known else 200)
    assert isinstance(answer, FileResponse) is (local and not known)
    assert answer.headers["etag"] == '"t"'
    assert answer.headers["x"] == "1"
    assert answer.headers["content-disposition"] == "inline; filename*=utf-8''a%20b.mp4"
    stored = gzip_response(
        "t", gzip.compress(b""), "text/plain", vary="", accept_encoding="gzip", if_none_match=if_none_match
    )
    assert stored.status_code == (304 if known else 200)
    assert stored.headers["etag"] == 'W/"t"'
