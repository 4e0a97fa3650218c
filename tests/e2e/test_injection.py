"""Tests that untrusted text stays text in headers and in the log; tests/browser/test_editing.py tests the page."""

from __future__ import annotations

import json
from pathlib import Path

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.server import logged, serving_here

NAMES = [
    'a"; filename="evil.html',
    "a\r\nSet-Cookie: evil=1\r\n\r\n<script>alert(1)</script>.mp4",
    "ünïcödé 影片.mp4",
    "<img src=x onerror=alert(1)>.mp4",
    "a\u2028b\u0085c.mp4",
]


def _form(name: str, caption: str, clip: bytes) -> bytes:
    """Return a multipart body built by hand, because a client library would escape the hostile parts."""
    quoted = name.replace('"', '\\"').encode()
    parts = (
        b'--reelsrs-boundary\r\nContent-Disposition: form-data; name="caption"\r\n\r\n' + caption.encode() + b"\r\n",
        b'--reelsrs-boundary\r\nContent-Disposition: form-data; name="file"; filename="' + quoted + b'"\r\n\r\n',
        clip + b"\r\n--reelsrs-boundary--\r\n",
    )
    return b"".join(parts)


def test_names_and_captions_inject_nothing(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder, decoder: Decoder
) -> None:
    clip = make_clip("a.mp4", numbered(3)).read_bytes()
    settings = settings_for(tmp_path / "data")
    with (
        logged(tmp_path / "log") as log,
        serving_here(settings, tiny, decoder) as service,
        service.client() as client,
    ):
        for number, name in enumerate(NAMES):
            caption = f'{name}\n{{"event": "forged", "level": "error"}}\r\nforged'
            body = _form(name, caption, clip + b"\x00\x00\x00\x0cfree" + number.to_bytes(4, "big"))
            sent_as = {"content-type": "multipart/form-data; boundary=reelsrs-boundary"}
            answer = client.post("/v1/videos", content=body, headers=sent_as)
            if "\r\n" in name:  # the rest of the name takes the place of the clip
                assert answer.status_code in (415, 422)
                continue
            assert answer.status_code == 202, (name, answer.text)
            video = answer.json()
            assert video["caption"] == caption.strip()
            content = client.get(f"/v1/videos/{video['id']}/content")
            assert content.status_code == 200
            assert "set-cookie" not in content.headers
            assert content.headers["content-type"] == "video/mp4"
            shown = content.headers["content-disposition"]
            assert shown.startswith("inline; filename")
            assert shown.count('"') <= 2
            assert not set(shown) & set("\r\n<>")
            client.get(f"/v1/videos/{name}%0aforged")
    lines = log.read_text(encoding="utf-8").splitlines()
    assert len(lines) > len(NAMES)
    for line in lines:
        assert isinstance(json.loads(line), dict), line
        assert json.loads(line)["event"] != "forged"
