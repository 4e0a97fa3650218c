"""The explorer page in a real browser, against a real server: what a user does, and what the service then has.

In every test the browser's console stays silent, no script fails, and nothing is asked of another host.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support import services
from tests.support.processes import CHILD_ENVIRONMENT
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Download, Page, Route

SOFTWARE_GRAPHICS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 360, "height": 740}
PAGE = 48  # hits that the page asks for
UNDO_SECONDS = 8
# Enough for every category to have neighbours, few enough to be embedded in seconds.
CLIPS = (
    *("animals/dog_jumps_log.mp4", "animals/wolf.mp4", "animals/orangutan.mp4", "animals/mallard_on_water.mp4"),
    *("cars_traffic/car_turn_jeep.mp4", "cars_traffic/dashcam_white_car.mp4", "city_street/tokyo_night_walk.mp4"),
    *("food_cooking/mixing_cake_batter.mp4", "food_cooking/two_men_dough.mp4", "city_street/pedestrians_plaza.mp4"),
    *("animation/bbb_480p_5s.mp4", "animation/bbb_rabbit_5s.mp4"),
)


# --- the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window, its graphics drawn in software."""
    chromium = shutil.which("chromium")
    if chromium is None:
        services.missing("there is no chromium on the path")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        services.missing("playwright is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *SOFTWARE_GRAPHICS])
        yield started
        started.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, out of the package that brings it to Playwright."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        services.missing("axe-playwright-python is not installed")
        raise AssertionError  # not reached
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


Open = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """`visit(server, "/explore?q=dog")`: the page in a fresh browser profile. `expected` is a pattern of console
    messages that the test provokes, for a browser reports every answer that is an error."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def watch(page: Page, hosts: set[str], expected: str | None) -> None:
        def said(kind: str, text: str) -> None:
            if kind != "debug" and not (expected and re.search(expected, text)):
                wrong.append(f"{kind}: {text}")

        def asked(url: str) -> None:
            if urlsplit(url).scheme not in ("blob", "data", "file") and urlsplit(url).netloc not in hosts:
                wrong.append(f"asked another host: {url}")

        page.on("console", lambda message: said(message.type, message.text))
        page.on("pageerror", lambda error: wrong.append(f"error: {error.stack or error}"))
        page.on("request", lambda request: asked(request.url))

    def visit(
        server: Server,
        address: str = "/explore",
        *,
        expected: str | None = None,
        again: Page | None = None,
        store: str = "",
        **of: Any,
    ) -> Page:
        context = browser.new_context(**{"viewport": WIDE, **of}) if again is None else again.context
        if again is None:
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # graphics in software, on a machine that does other things too
        watch(page, {urlsplit(server.url).netloc, store}, expected)
        page.goto(server.url + address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


# --- libraries


@contextmanager
def _library(folder: Path, clips: Path, names: tuple[str, ...] = CLIPS) -> Iterator[Server]:
    with serving(folder / "data") as server, server.client() as client:
        for name in names:
            clip = clips / name
            form = {"category": clip.parent.name, "caption": clip.with_suffix(".txt").read_text(encoding="utf-8")}
            with clip.open("rb") as file:
                answer = client.post("/v1/videos", params={"wait": 60}, files={"file": (clip.name, file)}, data=form)
            assert answer.status_code == 201, answer.text
        yield server


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, shared_clips: Path) -> Iterator[Server]:
    """A server with a dozen real clips in it; tests leave those as they are."""
    with _library(tmp_path_factory.mktemp("page"), shared_clips) as server:
        yield server


@pytest.fixture
def own_library(tmp_path: Path, shared_clips: Path) -> Iterator[Server]:
    """A server with three clips, for a test that changes them. It is asked for before `visit`, to outlive its pages."""
    with _library(tmp_path, shared_clips, CLIPS[:3]) as server:
        yield server


# --- what the page shows

IDS = "all => all.map(link => new URL(link.href).searchParams.get('video'))"


def _shown(page: Page, grid: str = "grid") -> list[str]:
    """Ids of the clips on show, in their order."""
    return page.locator(f"#{grid} .card h2 a").evaluate_all(IDS)


def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.05)


def _expect(page: Page, ids: list[str], grid: str = "grid") -> None:
    for _ in range(600):
        if _shown(page, grid) == ids:
            return
        page.wait_for_timeout(50)
    assert _shown(page, grid) == ids


def _ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["video"]["id"] for item in answer.json()["items"]]


def _weights(weight: float) -> dict[str, float]:
    return {"video_weight": weight, "text_weight": round(1 - weight, 6)}


def _weigh(page: Page, weight: float) -> None:
    page.locator("#weight").fill(str(round((1 - weight) * 100)))


def _search(page: Page, words: str) -> None:
    page.get_by_role("searchbox").fill(words)
    page.keyboard.press("Enter")
    page.locator("#results-title", has_text=words).wait_for()
    page.locator("#grid:not([aria-busy])").wait_for()


def _drawn(page: Page) -> None:
    """Until the map is there; on a small machine a first layout takes its time."""
    page.locator("#map-tools").wait_for(timeout=120_000)
    page.locator("#map-state").wait_for(state="hidden")


# Where the dots stand in the window.
DOTS = """plot => {
    const { xaxis, yaxis } = plot._fullLayout;
    const { left, top } = plot.getBoundingClientRect();
    return plot.data.slice(0, -1).filter(trace => trace.visible).flatMap(trace => Array.from(trace.x, (x, n) =>
        [left + xaxis._offset + xaxis.c2p(x), top + yaxis._offset + yaxis.c2p(trace.y[n])]));
}"""


def _lasso(page: Page, share: float = 0.5) -> int:
    """Draw around the dots of the map's left part; gives how many that are."""
    page.get_by_role("button", name="Select with a lasso").click()
    box = page.locator("#plot").bounding_box()
    assert box
    left, top = box["x"] + 4, box["y"] + 4
    right, bottom = box["x"] + box["width"] * share, box["y"] + box["height"] - 4
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 2)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    return sum(x < right for x, _ in page.locator("#plot").evaluate(DOTS))


# --- tests


def test_an_empty_library_fills_by_upload(visit: Open, tmp_path: Path, shared_clips: Path) -> None:
    clips = [shared_clips / name for name in CLIPS[:3]]
    broken = shared_clips / "odd_files" / "broken_mp4.mp4"
    with (
        serving(tmp_path / "data") as server,
        server.client() as client,
        closing(visit(server, expected=r"status of 415")) as page,
    ):
        page.get_by_text("No clips yet").wait_for()
        page.get_by_text("Nothing to map yet").wait_for()
        with page.expect_file_chooser() as chosen:
            page.get_by_role("button", name="Choose video files").click()
        chosen.value.set_files([*clips, broken])
        page.locator(".upload [role=progressbar]").first.wait_for()
        page.locator(".upload[data-stage=ready]").nth(2).wait_for(timeout=60_000)
        # The one that is no video says so, and can be tried again.
        failed = page.locator(".upload[data-stage=failed]")
        assert "broken_mp4.mp4" in failed.inner_text()
        assert "not a video" in failed.inner_text()
        failed.get_by_role("button", name="Retry").click()
        failed.get_by_text("not a video").wait_for()
        stored = client.get("/v1/videos").json()["items"]
        assert {video["status"] for video in stored} == {"ready"}
        page.locator("#grid .card").nth(2).wait_for()
        assert set(_shown(page)) == {video["id"] for video in stored}
        page.get_by_text("3 clips").first.wait_for()
        page.get_by_role("button", name="Close").click()
        assert page.locator("#tray").is_hidden()


@pytest.mark.parametrize("words", ["a dog outdoors", "cars in the street"])
def test_the_slider_orders_as_the_service_does(visit: Open, library: Server, words: str) -> None:
    page = visit(library)
    _search(page, words)
    orders = set()
    with library.client() as client:
        for weight in (0.7, 0.0, 0.35, 1.0):
            _weigh(page, weight)
            expected = _ids(client.post("/v1/search/text", json={"query": words, "k": PAGE, **_weights(weight)}))
            _expect(page, expected)
            orders.add(tuple(expected))
    assert len(orders) > 1
    assert "w=1" in page.url
    # By keyboard, too: a step towards what is written.
    page.locator("#weight").press("ArrowRight")
    with library.client() as client:
        _expect(page, _ids(client.post("/v1/search/text", json={"query": words, "k": PAGE, **_weights(0.95)})))


def test_a_hit_says_its_score_and_plays_from_its_moment(visit: Open, library: Server) -> None:
    words = "a dog jumps"
    with library.client() as client:
        hits = client.post("/v1/search/text", json={"query": words, "k": PAGE, **_weights(0.7)}).json()["items"]
    place, hit = next((n, hit) for n, hit in enumerate(hits) if hit["moment"]["time"] > 0.5)
    page = visit(library)
    _search(page, words)
    card = page.locator("#grid .card").nth(place)
    assert f"{hit['score']:.2f}".replace("-", "\u2212") in card.locator(".score-value").inner_text()
    card.locator("h2 a").click()
    player = page.locator("#detail video")
    player.wait_for()
    start = hit["moment"]["time"]
    page.wait_for_function("() => document.querySelector('#detail video').currentTime > 0.3")
    first = player.evaluate("video => video.currentTime")
    assert start - 0.05 <= first < start + 2
    _until(lambda: player.evaluate("video => video.currentTime") != first)  # it runs
    assert not player.evaluate("video => video.paused")
    # In the list, it plays from there under the pointer.
    page.keyboard.press("Escape")
    page.locator("#detail").wait_for(state="hidden")
    page.mouse.move(1, 1)
    card.scroll_into_view_if_needed()
    card.hover()
    page.wait_for_function(
        "start => [...document.querySelectorAll('#grid video')].some(v => v.currentTime >= start)", arg=start
    )


def _saved(page: Page, label: str) -> Download:
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return download.value


def test_dots_are_lassoed_and_saved(visit: Open, library: Server) -> None:
    page = visit(library)
    _drawn(page)
    page.get_by_role("button", name="3D").click()
    page.wait_for_function("() => document.getElementById('plot').data?.[0].type === 'scatter3d'")
    _drawn(page)
    assert page.get_by_role("button", name="Select with a lasso").is_hidden()
    page.get_by_role("button", name="2D").click()
    page.wait_for_function("() => document.getElementById('plot').data?.[0].type === 'scattergl'")
    _drawn(page)
    count = _lasso(page)
    assert 0 < count < len(CLIPS)
    page.get_by_role("heading", name=f"{count} clip").wait_for()
    page.locator("#selected-grid .card").nth(count - 1).wait_for()
    chosen = _shown(page, "selected-grid")
    assert len(chosen) == count

    with library.client() as client:
        videos = {video["id"]: video for video in client.get("/v1/videos").json()["items"]}
        body = {"embedding": "aggregated", "method": "umap", "dimensions": 2}
        projection = client.post("/v1/projections", json=body)
        assert projection.status_code == 200, projection.text
        points = client.get(projection.json()["points_url"]).json()["items"]
    places = {point["video_id"]: point["coordinates"] for point in points}
    download = _saved(page, "Save as JSON")
    assert download.suggested_filename.endswith(".json")
    saved = json.loads(Path(download.path()).read_text(encoding="utf-8"))
    assert saved["map"]["method"] == "umap"
    assert sorted(row["id"] for row in saved["items"]) == sorted(chosen)
    for row in saved["items"]:
        assert {name: row[name] for name in ("title", "category", "caption")} == {
            name: videos[row["id"]][name] for name in ("title", "category", "caption")
        }
        assert [row["x"], row["y"]] == places[row["id"]]
    text = Path(_saved(page, "Save as CSV").path()).read_bytes().decode()
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in table] == [row["id"] for row in saved["items"]]
    assert [row["caption"] for row in table] == [row["caption"] for row in saved["items"]]
    page.get_by_role("button", name="Clear selection").click()
    page.get_by_role("heading", name="Library").wait_for()


def test_a_selection_says_what_to_be_like_and_unlike(visit: Open, library: Server) -> None:
    page = visit(library)
    _drawn(page)
    _lasso(page, 0.4)
    page.locator("#selected-grid .card").first.wait_for()
    likes = _shown(page, "selected-grid")
    page.get_by_role("button", name="More like these").click()
    page.locator("#examples .example").nth(len(likes) - 1).wait_for()
    positive = [{"id": one} for one in likes]
    with library.client() as client:
        expected = _ids(client.post("/v1/recommendations", json={"positive": positive, "k": PAGE}))
        _expect(page, expected)
        # The farthest of those is what it shall be less like.
        unlike = expected[-1]
        page.goto(f"{page.url}&unlike={unlike}")
        body = {"positive": positive, "negative": [{"id": unlike}], "k": PAGE}
        _expect(page, _ids(client.post("/v1/recommendations", json=body)))
        page.locator("#examples").get_by_role("button").last.click()  # taken away again
        _expect(page, expected)
        assert "unlike" not in page.url
    page.get_by_role("button", name="Back to the library").click()
    page.get_by_role("heading", name="Library").wait_for()


def test_hits_are_lit_and_the_legend_hides(visit: Open, library: Server) -> None:
    page = visit(library)
    _drawn(page)
    lit = "() => document.getElementById('plot').data.at(-1).x.length"
    assert page.evaluate(lit) == 0
    _search(page, "a dog")
    page.wait_for_function(f"() => ({lit})() === {len(CLIPS)}")
    hidden = page.locator("#legend").get_by_role("button", name="Animals")
    hidden.click()
    assert hidden.get_attribute("aria-pressed") == "false"
    page.wait_for_function(f"() => ({lit})() === {len(CLIPS) - 4}")
    assert "hide=animals" in page.url
    page.get_by_role("button", name="Back to the library").click()
    page.wait_for_function(f"() => ({lit})() === 0")


def test_a_dot_shows_its_clip(visit: Open, library: Server) -> None:
    page = visit(library, "/explore?map=frame&method=pca")
    _drawn(page)
    page.wait_for_function("() => document.getElementById('plot').data.length > 2")
    x, y = page.locator("#plot").evaluate(DOTS)[0]
    page.mouse.move(x - 40, y)
    page.mouse.move(x, y, steps=8)
    card = page.locator("#hover")
    card.wait_for()
    card.locator("video.on").wait_for()
    time_said = card.locator(".at").inner_text()
    minutes, seconds = time_said.split(":")
    at = int(minutes) * 60 + float(seconds)
    assert card.locator("video").evaluate("video => video.currentTime") >= at - 0.1
    page.mouse.click(x, y)
    page.locator("#detail video").wait_for()
    assert card.is_hidden()
    page.wait_for_function("at => document.querySelector('#detail video').currentTime >= at - 0.1", arg=at)


def test_a_map_grows_where_it_stands(own_library: Server, visit: Open, shared_clips: Path) -> None:
    page = visit(own_library, "/explore?view=map&method=pca")
    _drawn(page)
    view = """() => {
        const { data, layout } = document.getElementById("plot");
        const dots = data.slice(0, -1).flatMap(({ x, y }) => Array.from(x, (one, n) => `${one} ${y[n]}`));
        return { dots: dots.sort(), x: layout.xaxis.range, y: layout.yaxis.range };
    }"""
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(500)
    before = page.evaluate(view)
    assert len(before["dots"]) == 3
    with own_library.client() as client, (shared_clips / CLIPS[3]).open("rb") as file:
        assert client.post("/v1/videos", params={"wait": 60}, files={"file": (CLIPS[3], file)}).status_code == 201
    page.get_by_text("1 placed since it was laid out").wait_for()
    after = page.evaluate(view)
    assert len(after["dots"]) == 4
    assert set(before["dots"]) < set(after["dots"])  # nothing jumped
    assert (after["x"], after["y"]) == (before["x"], before["y"])  # and nobody was taken elsewhere
    page.get_by_role("button", name="Lay out again").click()
    page.get_by_text("1 placed since it was laid out").wait_for(state="hidden")
    page.locator("#map-note", has_text="Being laid out").wait_for(state="hidden")
    _drawn(page)
    page.locator("#legend").get_by_role("button", name="No category").wait_for()


def test_a_map_that_takes_long_is_told_of_and_cancelled(visit: Open, library: Server) -> None:
    page = visit(library, "/explore?view=clips")
    state = {
        **{"id": "slow", "embedding": "aggregated", "method": "umap", "dimensions": 2, "points": 0, "placed": 0},
        **{"missing": 1234, "version": "0", "quality": None, "fitted_at": None, "error": None},
        **{"status": "running", "progress": 0.4, "points_url": "/v1/projections/slow/points"},
    }

    def answer(route: Route) -> None:
        if route.request.method == "DELETE":
            state.update(status="failed", error="cancelled")
        elif route.request.url.endswith("/fit"):
            state.update(status="failed", error="no space left on the device")
        route.fulfill(json=state)

    page.route("**/v1/projections**", answer)
    page.route("**/v1/projections/**", answer)
    page.get_by_role("button", name="Map", exact=True).click()
    page.get_by_text("Laying out 1,234 clips").wait_for()
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "40"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The map was cancelled").wait_for()
    page.get_by_role("button", name="Lay it out").click()
    page.get_by_text("No space left on the device.").wait_for()
    page.get_by_role("button", name="Try again").wait_for()


def test_deleting_can_be_undone_and_is_done(own_library: Server, visit: Open) -> None:
    page = visit(own_library, "/explore?view=clips")
    page.locator("#grid .card").nth(2).wait_for()
    before = _shown(page)
    with own_library.client() as client:

        def delete(place: int) -> str:
            page.locator("#grid .card h2 a").nth(place).click()
            page.locator("#detail").get_by_role("button", name="Delete").click()
            page.locator("#detail").wait_for(state="hidden")
            page.locator(".toast").wait_for()
            return before[place]

        first = delete(1)
        _expect(page, [before[0], before[2]])
        page.get_by_role("button", name="Undo").click()
        _expect(page, before)
        assert page.locator(".toast").count() == 0
        page.wait_for_timeout((UNDO_SECONDS + 1) * 1000)
        assert client.get(f"/v1/videos/{first}").status_code == 200

        delete(1)
        assert client.get(f"/v1/videos/{first}").status_code == 200  # not yet
        page.mouse.move(1, 1)
        page.locator(".toast").wait_for(state="detached")
        _until(lambda: client.get(f"/v1/videos/{first}").status_code == 404)
        _expect(page, [before[0], before[2]])

        # Who leaves in between has deleted all the same. By keyboard, the way back has the focus.
        page.locator("#grid .card h2 a").first.focus()
        page.keyboard.press("Enter")
        page.locator("#detail").get_by_role("button", name="Delete").press("Enter")
        page.locator(".toast").wait_for()
        assert page.evaluate("() => document.activeElement.textContent") == "Undo"
        page.keyboard.press("Control+z")
        _expect(page, [before[0], before[2]])
        page.locator("#grid .card h2 a").first.click()
        page.locator("#detail").get_by_role("button", name="Delete").click()
        page.locator(".toast").wait_for()
        page.goto(f"{own_library.url}/docs")
        _until(lambda: client.get(f"/v1/videos/{before[0]}").status_code == 404)


def test_caption_and_category_are_edited(own_library: Server, visit: Open) -> None:
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
        stored = client.get(f"/v1/videos/{_shown(page)[0]}").json()
    assert stored["category"] == "wild <b>things"
    page.locator("#category").select_option("wild <b>things")
    _expect(page, [stored["id"]])


HOSTILE = {
    "title": "<script>window.hit = 1</script>",
    "caption": "</textarea></script><script>window.hit = 2</script> a beast",
    "category": "<img src=x onerror='window.hit = 3'>",
}
HOSTILE_NAME = "<img src=x onerror=window.hit=4>.mp4"


def test_what_strangers_write_is_text_wherever_it_is_shown(
    own_library: Server, visit: Open, shared_clips: Path, tmp_path: Path
) -> None:
    named = tmp_path / HOSTILE_NAME
    shutil.copy(shared_clips / CLIPS[3], named)
    with own_library.client() as client, (shared_clips / CLIPS[4]).open("rb") as file:
        sent = client.post("/v1/videos", params={"wait": 60}, files={"file": (HOSTILE_NAME, file)}, data=HOSTILE)
        assert sent.status_code == 201, sent.text
        video = sent.json()
        assert {name: video[name] for name in HOSTILE} == HOSTILE
    page = visit(own_library, "/explore?method=pca")
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Upload").click()
    chosen.value.set_files(named)
    page.locator(".upload[data-stage=ready]").wait_for(timeout=60_000)
    assert HOSTILE_NAME in page.locator(".upload").inner_text()
    page.get_by_role("button", name="Close").click()
    page.locator("#grid .card").nth(4).wait_for()
    for text in (HOSTILE["title"], HOSTILE["caption"], HOSTILE_NAME.removesuffix(".mp4")):
        page.locator("#grid").get_by_text(text, exact=True).first.wait_for()
    _drawn(page)
    page.locator("#legend").get_by_text(HOSTILE["category"]).wait_for()
    _search(page, HOSTILE["title"])
    page.locator("#grid").get_by_text(HOSTILE["caption"], exact=True).wait_for()
    page.locator(f"#grid .card h2 a[href*='{video['id']}']").click()
    page.locator("#detail video").wait_for()
    for text in HOSTILE.values():
        page.locator("#detail").get_by_text(text).first.wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Back to the library").click()
    _drawn(page)
    _until(lambda: _some_dot_says(page, HOSTILE["title"]))
    page.mouse.move(1, 1)
    _lasso(page, 1.0)
    page.locator("#selected-grid .card").nth(4).wait_for()
    rows = json.loads(Path(_saved(page, "Save as JSON").path()).read_text(encoding="utf-8"))["items"]
    saved = next(row for row in rows if row["id"] == video["id"])
    assert {name: saved[name] for name in HOSTILE} == HOSTILE
    page.goto(own_library.url + f"/explore?video={video['id']}&q=<script>window.hit=5</script>")
    page.locator("#detail video").wait_for()
    assert page.evaluate("window.hit") is None
    # The map that the command line writes is a page as well, with no policy but its own.
    written = _written_map(page, own_library, tmp_path / "map.html")
    assert HOSTILE["category"] in (written.locator(".legend").text_content() or "")
    assert written.evaluate("window.hit") is None


def _some_dot_says(page: Page, words: str) -> bool:
    # So few clips are laid out anew whenever some come, so the dots may move while they are looked at.
    for x, y in page.locator("#plot").evaluate(DOTS):
        page.mouse.move(x - 40, y)
        page.mouse.move(x, y, steps=8)
        page.wait_for_timeout(300)
        if page.locator("#hover").is_visible() and words in page.locator("#hover").inner_text():
            return True
    return False


def _written_map(page: Page, server: Server, path: Path) -> Page:
    done = subprocess.run(
        [sys.executable, "-m", "service", "visualize", "--method", "pca", "--output", str(path)],
        env={**CHILD_ENVIRONMENT, "REELSRS_DATA_DIR": str(server.data_dir)},
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page.goto(f"file://{path}")
    page.locator(".legendtext").first.wait_for()
    return page


def test_what_is_chosen_while_a_closed_clip_leaves_the_address_holds(own_library: Server, visit: Open) -> None:
    page = visit(own_library, "/explore?view=clips")
    # A browser that has much to do steps back when it gets to it.
    page.evaluate("() => { const back = history.back.bind(history); history.back = () => setTimeout(back, 500); }")
    page.locator("#grid .card h2 a").first.click()
    page.get_by_role("button", name="Close").click()
    category = page.locator("#category option").nth(1).get_attribute("value")
    page.locator("#category").select_option(category)
    with own_library.client() as client:
        listed = client.get("/v1/videos", params={"category": category}).json()["items"]
    page.wait_for_url("**/explore?*category=*")
    page.wait_for_timeout(1000)
    _expect(page, [one["id"] for one in listed])
    assert "video=" not in page.url
    assert page.locator("dialog[open]").count() == 0


def test_the_docs_page_asks_the_service_under_its_own_policy(own_library: Server, visit: Open) -> None:
    page = visit(own_library, "/docs")
    page.locator("#operations-service-categories_v1_categories_get, [id*=categories]").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status").get_by_text("200").wait_for()


DROP = """async ({ target, name, type, bytes }) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(bytes), one => one.charCodeAt(0))], name, { type }));
    const how = { dataTransfer: data, bubbles: true, cancelable: true };
    const fire = (on, kind) => on.dispatchEvent(new DragEvent(kind, how));
    fire(document.body, "dragenter");
    const shown = [...document.querySelectorAll("#drop:not([hidden]) .drop-place:not([hidden])")].map(({ id }) => id);
    fire(document.querySelector(target), "drop");
    return shown;
}"""


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_a_picture_and_a_clip_are_searched_with(visit: Open, library: Server, shared_clips: Path) -> None:
    page = visit(library, "/explore?view=clips")
    page.locator("#grid .card").first.wait_for()
    with library.client() as client:
        wanted = client.get("/v1/videos", params={"category": "food_cooking"}).json()["items"][0]["id"]
        picture = client.get(f"/v1/videos/{wanted}/thumbnail").content
        dropped = {"target": "main", "name": "dish.jpg", "type": "image/jpeg", "bytes": _text(picture)}
        assert page.evaluate(DROP, dropped) == ["drop-search"]  # a picture has nowhere else to go
        page.get_by_role("heading", name="dish.jpg").wait_for()

        def by_picture(weight: float) -> list[str]:
            form = {"k": str(PAGE), **{name: str(value) for name, value in _weights(weight).items()}}
            return _ids(client.post("/v1/search/image", files={"file": ("dish.jpg", picture)}, data=form))

        _expect(page, by_picture(0.7))
        assert _shown(page)[0] == wanted
        for weight in (0.2, 1.0):
            _weigh(page, weight)
            page.wait_for_timeout(100)
            _expect(page, by_picture(weight))
        assert page.locator("#asked-picture").evaluate("image => image.naturalWidth") > 0

        clip = shared_clips / CLIPS[3]
        dropped = {"target": "#drop-search", "name": clip.name, "type": "video/mp4", "bytes": _text(clip.read_bytes())}
        assert page.evaluate(DROP, dropped) == ["drop-search", "drop-add"]
        page.get_by_role("heading", name=clip.name).wait_for()
        page.get_by_text("has no caption, so only what is seen counts").wait_for(state="hidden")  # at this weight
        form = {"k": str(PAGE), **{name: str(value) for name, value in _weights(1).items()}}
        with clip.open("rb") as file:
            _expect(page, _ids(client.post("/v1/search/video", files={"file": (clip.name, file)}, data=form)))
        assert client.get("/v1/info").json()["videos"] == {"ready": len(CLIPS)}  # nothing was kept
    page.go_back()  # the picture is still at hand
    page.get_by_role("heading", name="dish.jpg").wait_for()
    page.reload()
    page.get_by_text("no longer has the file").wait_for()


def test_the_address_is_the_view(visit: Open, library: Server) -> None:
    page = visit(library)
    _drawn(page)
    _search(page, "a street")
    _weigh(page, 0.4)
    page.wait_for_url("**w=0.4**")
    page.locator("#category").select_option("city_street")
    page.locator("#map-kind").select_option("frame")
    page.locator("#map-method").select_option("pca")
    page.get_by_role("button", name="3D").click()
    page.locator("#legend").get_by_role("button", name="Animation").click()
    page.locator("#grid .card h2 a").first.click()
    page.locator("#detail video").wait_for()
    page.locator("#grid:not([aria-busy])").wait_for()
    shown = _shown(page)

    other = visit(library, page.url.removeprefix(library.url))
    other.locator("#detail video").wait_for()
    assert other.locator("#detail-title").inner_text() == page.locator("#detail-title").inner_text()
    other.keyboard.press("Escape")
    _expect(other, shown)
    assert other.get_by_role("searchbox").input_value() == "a street"
    assert other.locator("#weight").input_value() == "60"
    assert other.locator("#category").input_value() == "city_street"
    assert other.locator("#map-kind").input_value() == "frame"
    assert other.locator("#map-method").input_value() == "pca"
    assert other.get_by_role("button", name="3D").get_attribute("aria-pressed") == "true"
    _drawn(other)
    hidden = other.locator("#legend").get_by_role("button", name="Animation")
    assert hidden.get_attribute("aria-pressed") == "false"

    page.go_back()  # the clip closes
    page.locator("#detail").wait_for(state="hidden")
    page.go_back()  # the legend
    page.go_back()  # three dimensions
    assert page.get_by_role("button", name="2D").get_attribute("aria-pressed") == "true"
    page.go_forward()
    assert page.get_by_role("button", name="3D").get_attribute("aria-pressed") == "true"


def test_a_service_that_starts_again_loses_nothing(own_library: Server, visit: Open, shared_clips: Path) -> None:
    page = visit(own_library, "/explore?view=clips", expected=r"Failed to load resource: net::|ERR_")
    page.locator("#grid .card").nth(2).wait_for()
    process = own_library.process
    process.terminate()
    process.wait(30)
    page.get_by_role("searchbox").fill("a dog")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("does not answer").wait_for()
    page.set_input_files("#files", shared_clips / CLIPS[3])
    page.get_by_text("Sent again when it does").wait_for()
    with own_library.log.open("ab") as log:
        again = subprocess.Popen(
            process.args,
            env={**CHILD_ENVIRONMENT, "REELSRS_MODEL": "tiny", "REELSRS_DATA_DIR": str(own_library.data_dir)},
            cwd=own_library.data_dir.parent,
            stdout=log,
            stderr=log,
        )
    try:
        page.get_by_role("heading", name="a dog").wait_for(timeout=60_000)
        page.locator("#grid .card .score").nth(2).wait_for(timeout=60_000)
        assert page.locator("#gone").is_hidden()
        page.locator(".upload[data-stage=ready]").wait_for(timeout=60_000)
    finally:
        page.context.close()
        again.terminate()
        again.wait(30)


def test_a_key_is_asked_for_once(visit: Open, tmp_path: Path, shared_clips: Path) -> None:
    with (
        serving(tmp_path / "data", REELSRS_API_KEYS="open sesame") as server,
        closing(visit(server, "/explore?view=clips", expected=r"status of 40[13]")) as page,
    ):
        page.get_by_role("textbox", name="API key").fill("something else")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("not known here").wait_for()
        page.get_by_role("textbox", name="API key").fill("open sesame")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("No clips yet").wait_for()
        page.set_input_files("#files", [shared_clips / name for name in CLIPS[:3]])
        page.locator(".upload[data-stage=ready]").nth(2).wait_for(timeout=60_000)
        page.locator("#grid .card img").nth(2).wait_for()
        page.wait_for_function("() => [...document.querySelectorAll('#grid img')].every(image => image.naturalWidth)")
        page.locator("#grid .card h2 a").first.click()
        page.wait_for_function("() => document.querySelector('#detail video')?.currentTime > 0")  # plays, with the key
        page.reload()  # kept in this tab
        page.locator("#grid .card").nth(2).wait_for()


VIEWS: dict[str, tuple[str, Callable[[Page], object] | None]] = {
    "library": ("/explore?view=clips", None),
    "search": ("/explore?q=a+dog", None),
    "map": ("/explore?view=map", None),
    "map in three dimensions": ("/explore?view=map&d=3", None),
    "selection": ("/explore", _lasso),
    "clip": ("/explore?view=clips", lambda page: page.locator("#grid .card h2 a").first.click()),
    "editing": (
        "/explore?view=clips",
        lambda page: (page.locator("#grid .card h2 a").first.click(), page.get_by_role("button", name="Edit").click()),
    ),
}
AXE = """async () => (await axe.run()).violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html.slice(0, 160)).join(" | ")}`)"""


def _settled(page: Page) -> None:
    page.locator("#grid:not([aria-busy])").wait_for(state="attached")
    page.locator("#health[data-kind=ok]").wait_for()
    if page.locator("#map").is_visible():
        _drawn(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_stands_in_anyones_way(visit: Open, library: Server, axe: str, view: str, scheme: str) -> None:
    address, act = VIEWS[view]
    page = visit(library, address, color_scheme=scheme, reduced_motion="reduce")
    _settled(page)
    if act:
        act(page)
        page.wait_for_timeout(300)
    page.evaluate(axe)
    assert page.evaluate(AXE) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_scrolls_only_downwards(visit: Open, library: Server, view: str) -> None:
    address, act = VIEWS[view]
    if view == "selection":
        address = "/explore?view=map"
    page = visit(library, address, viewport=PHONE)
    _settled(page)
    if act:
        act(page)
        page.wait_for_timeout(300)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_clip_that_an_object_store_lends_plays(
    tmp_path: Path, shared_clips: Path, objects: services.ObjectStore, visit: Open
) -> None:
    """The browser is sent on to the store, by a link that holds for a while."""
    settings = {"REELSRS_STORAGE_URL": objects.url("lent"), "REELSRS_LINK_SECONDS": "300"}
    with serving(tmp_path / "data", **objects.environment, **settings) as server, server.client() as client:
        with (shared_clips / CLIPS[3]).open("rb") as file:
            answer = client.post("/v1/videos", params={"wait": 60}, files={"file": ("a.mp4", file)})
        assert answer.status_code == 201, answer.text
        store = f"127.0.0.1:{objects.port}"
        content = client.get(answer.json()["content_url"])
        assert content.status_code == 307
        assert urlsplit(content.headers["location"]).netloc == store
        page = visit(server, f"/explore?video={answer.json()['id']}", store=store)
        player = page.locator("#detail video")
        player.wait_for()
        player.evaluate("video => { video.muted = true; return video.play(); }")
        page.wait_for_function("() => document.querySelector('#detail video').currentTime > 0.3")
        assert player.evaluate("video => video.error") is None
        page.close()
