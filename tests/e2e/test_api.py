"""Tests of the REST service over a real socket."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

from service.embedding.encoder import Encoder
from service.media import Decoder, Limits
from tests.support import services
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.rest import upload
from tests.support.rest_properties import RestProperties
from tests.support.server import Service, logged, serving_here


class TestRest(RestProperties):
    """Run the REST properties with all data in files."""


def test_limits_keys_and_origins(tmp_path: Path, make_clip: ClipMaker, tiny: Encoder) -> None:
    clip = make_clip("a.mp4", numbered(30))
    settings = settings_for(
        tmp_path / "data",
        max_upload_bytes=100_000,
        max_duration_seconds=2,
        api_keys="key-one,key-two",
        cors_origins="https://app.example",
    )
    decoder = Decoder(Limits(settings.max_duration_seconds, settings.max_pixels))
    with logged(tmp_path / "log") as log, closing(decoder), serving_here(settings, tiny, decoder) as running:
        with running.client() as stranger:
            assert stranger.get("/livez").status_code == 200
            refused = stranger.get("/v1/videos")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert stranger.get("/v1/info").status_code == 401
            assert stranger.get("/v1/videos", headers={"X-API-Key": "guess"}).status_code == 403
            assert stranger.get("/v1/videos", headers={"X-API-Key": "key-two"}).status_code == 200
            assert upload(stranger, clip).status_code == 401
        with running.client(headers={"Authorization": "Bearer key-one"}) as client:
            answer = upload(client, clip)
            assert answer.status_code == 422
            assert "lasts 3.0 s; at most 2 s" in answer.json()["detail"]
            allowed = client.get("/v1/videos", headers={"Origin": "https://app.example"})
            assert allowed.headers["access-control-allow-origin"] == "https://app.example"
            other = client.get("/v1/videos", headers={"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers
            _too_large(running)
            assert services.stored(running.data_dir) == set()
        assert '"path": "/v1/videos"' in log.read_text()
        assert "key-one" not in log.read_text()


def _too_large(server: Service) -> None:
    """Check that oversized bodies, with and without a length, are refused before they are complete."""
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/videos HTTP/1.1\r\nHost: x\r\nX-API-Key: key-one\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
    for framing, chunks in ((f"Content-Length: {10**12}\r\n", 0), ("Transfer-Encoding: chunked\r\n", 40)):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall((head + framing + "\r\n").encode())
            if chunks:
                connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            try:
                for _ in range(chunks):
                    connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            except OSError:
                pass  # the service has already closed the connection
            answer = b""
            try:
                while not answer.endswith(b"}"):
                    received = connection.recv(65536)
                    if not received:
                        break
                    answer += received
            except ConnectionResetError:
                pass
        assert answer.startswith(b"HTTP/1.1 413 "), answer
