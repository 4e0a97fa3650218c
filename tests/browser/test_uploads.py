"""Tests of uploads from the page, and of playback from where the clips are stored."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support import services
from tests.support.library import settings_for
from tests.support.page import Visit, shown
from tests.support.rest import upload
from tests.support.server import serving_here

# The head of an MP4 file, followed by bytes that are not MP4 content.
BROKEN = b"\0\0\0\x14ftypisom\0\0\x02\0mp41\0\0\0\x08free\0\0\x10\x08mdat" + bytes(range(256)) * 16


def test_an_empty_library_fills_by_upload(
    visit: Visit, tmp_path: Path, clips: list[Path], tiny: Encoder, decoder: Decoder
) -> None:
    broken = tmp_path / "broken_mp4.mp4"
    broken.write_bytes(BROKEN)
    with (
        serving_here(settings_for(tmp_path / "data"), tiny, decoder) as service,
        service.client() as client,
        closing(visit(service, expected=r"status of 415")) as page,
    ):
        page.get_by_text("No clips yet").wait_for()
        page.get_by_text("Nothing to map yet").wait_for()
        with page.expect_file_chooser() as chosen:
            page.get_by_role("button", name="Choose video files").click()
        chosen.value.set_files([*clips[:3], broken])
        page.locator(".upload [role=progressbar]").first.wait_for()
        page.locator(".upload[data-stage=ready]").nth(2).wait_for()
        # The file that is not a video shows an error and can be retried.
        failed = page.locator(".upload[data-stage=failed]")
        assert "broken_mp4.mp4" in failed.inner_text()
        assert "not a video" in failed.inner_text()
        failed.get_by_role("button", name="Retry").click()
        failed.get_by_text("not a video").wait_for()
        stored = client.get("/v1/videos").json()["items"]
        assert {video["status"] for video in stored} == {"ready"}
        page.locator("#grid .card").nth(2).wait_for()
        assert set(shown(page)) == {video["id"] for video in stored}
        page.get_by_text("3 clips").first.wait_for()
        page.get_by_role("button", name="Close").click()
        assert page.locator("#tray").is_hidden()


def test_a_key_is_asked_for_once(
    visit: Visit, tmp_path: Path, clips: list[Path], tiny: Encoder, decoder: Decoder
) -> None:
    with (
        serving_here(settings_for(tmp_path / "data", api_keys="open sesame"), tiny, decoder) as service,
        closing(visit(service, "/explore?view=clips", expected=r"status of 40[13]")) as page,
    ):
        page.get_by_role("textbox", name="API key").fill("something else")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("This API key is not valid").wait_for()
        page.get_by_role("textbox", name="API key").fill("open sesame")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("No clips yet").wait_for()
        page.set_input_files("#files", clips[:3])
        page.locator(".upload[data-stage=ready]").nth(2).wait_for()
        page.locator("#grid .card img").nth(2).wait_for()
        page.wait_for_function("() => [...document.querySelectorAll('#grid img')].every(image => image.naturalWidth)")
        page.locator("#grid .card h2 a").first.click()
        page.wait_for_function("() => document.querySelector('#detail video')?.currentTime > 0")  # plays with the key
        page.reload()  # the API key is kept in this tab
        page.locator("#grid .card").nth(2).wait_for()


def test_a_clip_that_an_object_store_lends_plays(
    objects: services.ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    visit: Visit,
    tmp_path: Path,
    clips: list[Path],
    tiny: Encoder,
    decoder: Decoder,
) -> None:
    """The service redirects the browser to the object store, by a link with an expiry time."""
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_for(tmp_path / "data", storage_url=objects.url("lent"), link_seconds=300)
    with serving_here(settings, tiny, decoder) as service, service.client() as client:
        answer = upload(client, clips[3])
        assert answer.status_code == 201, answer.text
        store = f"127.0.0.1:{objects.port}"
        content = client.get(answer.json()["content_url"])
        assert content.status_code == 307
        assert urlsplit(content.headers["location"]).netloc == store
        with closing(visit(service, f"/explore?view=clips&video={answer.json()['id']}", store=store)) as page:
            player = page.locator("#detail video")
            player.wait_for()
            player.evaluate("video => { video.muted = true; return video.play(); }")
            page.wait_for_function("() => document.querySelector('#detail video').currentTime > 0.3")
            assert player.evaluate("video => video.error") is None
