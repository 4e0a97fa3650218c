"""Tests of edits and deletions on the page, and that untrusted text stays text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from service.bootstrap import Runtime
from service.embedding.encoder import Encoder
from service.media import Decoder
from service.operations.visualize import write_projection
from tests.support.library import settings_for
from tests.support.page import (
    Visit,
    dots,
    expect_shown,
    lasso,
    look_at_map,
    map_drawn,
    map_of,
    point_at,
    save,
    search,
    shown,
)
from tests.support.rest import upload
from tests.support.server import Service
from tests.support.wait import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

UNDO_SECONDS = 8
HOSTILE = {
    "title": "<script>window.hit = 1</script>",
    "caption": "</textarea></script><script>window.hit = 2</script> a beast",
    "category": "<img src=x onerror='window.hit = 3'>",
}
HOSTILE_NAME = "<img src=x onerror=window.hit=4>.mp4"


def test_deleting_can_be_undone_and_is_done(own_library: Service, visit: Visit) -> None:
    page = visit(own_library, "/explore?view=clips", clock=True)
    page.locator("#grid .card").nth(2).wait_for()
    before = shown(page)
    deleted: list[str] = []
    page.on("request", lambda request: deleted.append(request.url) if request.method == "DELETE" else None)
    with own_library.client() as client:

        def delete(place: int) -> str:
            page.locator("#grid .card h2 a").nth(place).click()
            page.locator("#detail").get_by_role("button", name="Delete").click()
            page.locator("#detail").wait_for(state="hidden")
            page.locator(".toast").wait_for()
            return before[place]

        first = delete(1)
        expect_shown(page, [before[0], before[2]])
        page.get_by_role("button", name="Undo").click()
        expect_shown(page, before)
        assert page.locator(".toast").count() == 0
        page.clock.fast_forward((UNDO_SECONDS + 1) * 1000)
        page.evaluate("() => fetch('/livez')")  # any request of the page before this one has been sent by now
        assert deleted == []
        assert client.get(f"/v1/videos/{first}").status_code == 200

        delete(1)
        assert client.get(f"/v1/videos/{first}").status_code == 200  # not deleted yet
        page.mouse.move(1, 1)
        page.clock.fast_forward(UNDO_SECONDS * 1000)
        page.locator(".toast").wait_for(state="detached")
        until(lambda: client.get(f"/v1/videos/{first}").status_code == 404)
        expect_shown(page, [before[0], before[2]])

        # Leaving the page during the undo time deletes the clip anyway. With the keyboard, Undo has the focus.
        page.locator("#grid .card h2 a").first.focus()
        page.keyboard.press("Enter")
        page.locator("#detail").get_by_role("button", name="Delete").press("Enter")
        page.locator(".toast").wait_for()
        assert page.evaluate("() => document.activeElement.textContent") == "Undo"
        page.keyboard.press("Control+z")
        expect_shown(page, [before[0], before[2]])
        page.locator("#grid .card h2 a").first.click()
        page.locator("#detail").get_by_role("button", name="Delete").click()
        page.locator(".toast").wait_for()
        page.goto(f"{own_library.url}/docs")
        until(lambda: client.get(f"/v1/videos/{before[0]}").status_code == 404)


def test_caption_and_category_are_edited(own_library: Service, visit: Visit) -> None:
    page = visit(own_library, "/explore?view=clips")
    page.locator("#grid .card h2 a").first.click()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Category").last.fill("wild <b>things")
    page.get_by_label("Caption").fill("<img src=x onerror=alert(1)> a beast")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved.").wait_for()
    page.get_by_role("button", name="Close").click()
    page.locator("#grid").get_by_text("<img src=x onerror=alert(1)> a beast").wait_for()
    with own_library.client() as client:
        stored = client.get(f"/v1/videos/{shown(page)[0]}").json()
    assert stored["category"] == "wild <b>things"
    page.locator("#category").select_option("wild <b>things")
    expect_shown(page, [stored["id"]])


def test_what_strangers_write_is_text_wherever_it_is_shown(
    own_library: Service, visit: Visit, clips: list[Path], tmp_path: Path, tiny: Encoder, decoder: Decoder
) -> None:
    named, other = tmp_path / HOSTILE_NAME, tmp_path / "other" / HOSTILE_NAME
    other.parent.mkdir()
    shutil.copy(clips[3], named)
    shutil.copy(clips[4], other)
    with own_library.client() as client:
        sent = upload(client, other, **HOSTILE)
        assert sent.status_code == 201, sent.text
        video = sent.json()
        assert {name: video[name] for name in HOSTILE} == HOSTILE
    page = visit(own_library, "/explore?method=pca", clock=True)
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Upload").click()
    chosen.value.set_files(named)
    page.locator(".upload[data-stage=ready]").wait_for()
    assert HOSTILE_NAME in page.locator(".upload").inner_text()
    page.get_by_role("button", name="Close").click()
    page.locator("#grid .card").nth(4).wait_for()
    for text in (HOSTILE["title"], HOSTILE["caption"], HOSTILE_NAME.removesuffix(".mp4")):
        page.locator("#grid").get_by_text(text, exact=True).first.wait_for()
    map_drawn(page)
    page.locator("#legend").get_by_text(HOSTILE["category"]).wait_for()
    search(page, HOSTILE["title"])
    page.locator("#grid").get_by_text(HOSTILE["caption"], exact=True).wait_for()
    page.locator(f"#grid .card h2 a[href*='{video['id']}']").click()
    page.locator("#detail video").wait_for()
    for text in HOSTILE.values():
        page.locator("#detail").get_by_text(text).first.wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Back to the library").click()
    map_drawn(page)
    with own_library.client() as client:
        until(lambda: map_of(client, method="pca")["points"] == 5)
    look_at_map(page)
    page.locator("#legend").get_by_text("No category").wait_for()
    page.get_by_role("button", name="Show all").click()  # the newest clip may lie outside the view
    until(lambda: _some_dot_says(page, HOSTILE["title"]))
    page.mouse.move(1, 1)
    lasso(page, 1.0)
    page.locator("#selected-grid .card").nth(4).wait_for()
    rows = json.loads(Path(save(page, "Save as JSON").path()).read_text(encoding="utf-8"))["items"]
    saved = next(row for row in rows if row["id"] == video["id"])
    assert {name: saved[name] for name in HOSTILE} == HOSTILE
    page.goto(own_library.url + f"/explore?video={video['id']}&q=<script>window.hit=5</script>")
    page.locator("#detail video").wait_for()
    assert page.evaluate("window.hit") is None
    # The exported projection is also a page, with only its own content security policy.
    runtime = Runtime(settings_for(own_library.data_dir), model=tiny, decoder=decoder)
    write_projection(runtime, tmp_path / "map.html", runtime.projections.spec("aggregated", "pca", 2))
    runtime.close()
    page.goto(f"file://{tmp_path}/map.html")
    page.locator(".legendtext").first.wait_for()
    assert HOSTILE["category"] in (page.locator(".legend").text_content() or "")
    assert page.evaluate("window.hit") is None


def _some_dot_says(page: Page, words: str) -> bool:
    # A dot that moves while the pointer is on it shows nothing, so try the next one.
    from playwright.sync_api import TimeoutError as TooLong

    for place in dots(page):
        point_at(page, place)
        try:
            page.locator("#hover .hover-title:not(:empty)").wait_for(timeout=2000)
        except TooLong:
            continue
        if words in page.locator("#hover").inner_text():
            return True
    return False
