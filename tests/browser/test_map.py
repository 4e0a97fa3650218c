"""Tests of the map: select, highlight, hide and point at dots; growth, slow fits and cancelled fits."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.page import (
    PAGE,
    Visit,
    dots,
    expect_shown,
    ids_of,
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
    from playwright.sync_api import Route


def test_dots_are_lassoed_and_saved(visit: Visit, mapped: Service, clips: list[Path]) -> None:
    page = visit(mapped)
    map_drawn(page)
    page.get_by_role("button", name="3D").click()
    page.wait_for_function("() => document.getElementById('plot').data?.[0].type === 'scatter3d'")
    map_drawn(page)
    assert page.get_by_role("button", name="Select with a lasso").is_hidden()
    page.get_by_role("button", name="2D").click()
    page.wait_for_function("() => document.getElementById('plot').data?.[0].type === 'scattergl'")
    map_drawn(page)
    count = lasso(page)
    assert 0 < count < len(clips)
    page.get_by_role("heading", name=f"{count} clip").wait_for()
    page.locator("#selected-grid .card").nth(count - 1).wait_for()
    chosen = shown(page, "selected-grid")
    assert len(chosen) == count

    with mapped.client() as client:
        videos = {video["id"]: video for video in client.get("/v1/videos").json()["items"]}
        points = client.get(map_of(client)["points_url"]).json()["items"]
    places = {point["video_id"]: point["coordinates"] for point in points}
    download = save(page, "Save as JSON")
    assert download.suggested_filename.endswith(".json")
    saved = json.loads(Path(download.path()).read_text(encoding="utf-8"))
    assert saved["map"]["method"] == "umap"
    assert sorted(row["id"] for row in saved["items"]) == sorted(chosen)
    for row in saved["items"]:
        assert {name: row[name] for name in ("title", "category", "caption")} == {
            name: videos[row["id"]][name] for name in ("title", "category", "caption")
        }
        assert [row["x"], row["y"]] == places[row["id"]]
    text = Path(save(page, "Save as CSV").path()).read_bytes().decode()
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in table] == [row["id"] for row in saved["items"]]
    assert [row["caption"] for row in table] == [row["caption"] for row in saved["items"]]
    page.get_by_role("button", name="Clear selection").click()
    page.get_by_role("heading", name="Library").wait_for()


def test_a_selection_says_what_to_be_like_and_unlike(visit: Visit, mapped: Service) -> None:
    page = visit(mapped)
    map_drawn(page)
    lasso(page, 0.4)
    page.locator("#selected-grid .card").first.wait_for()
    likes = shown(page, "selected-grid")
    page.get_by_role("button", name="More like these").click()
    page.locator("#examples .example").nth(len(likes) - 1).wait_for()
    positive = [{"id": one} for one in likes]
    with mapped.client() as client:
        expected = ids_of(client.post("/v1/recommendations", json={"positive": positive, "k": PAGE}))
        expect_shown(page, expected)
        # The least similar result becomes the negative example.
        unlike = expected[-1]
        page.goto(f"{page.url}&unlike={unlike}")
        body = {"positive": positive, "negative": [{"id": unlike}], "k": PAGE}
        expect_shown(page, ids_of(client.post("/v1/recommendations", json=body)))
        page.locator("#examples").get_by_role("button").last.click()  # remove the negative example
        expect_shown(page, expected)
        assert "unlike" not in page.url
    page.get_by_role("button", name="Back to the library").click()
    page.get_by_role("heading", name="Library").wait_for()


def test_hits_are_lit_and_the_legend_hides(visit: Visit, mapped: Service, clips: list[Path]) -> None:
    page = visit(mapped)
    map_drawn(page)
    lit = "() => document.getElementById('plot').data.at(-1).x.length"
    assert page.evaluate(lit) == 0
    search(page, "a star")
    page.wait_for_function(f"() => ({lit})() === {len(clips)}")
    hidden = page.locator("#legend").get_by_role("button", name="Pattern")
    hidden.click()
    assert hidden.get_attribute("aria-pressed") == "false"
    at_sight = [clip for clip in clips if clip.parent.name != "pattern"]
    assert 0 < len(at_sight) < len(clips)
    page.wait_for_function(f"() => ({lit})() === {len(at_sight)}")
    assert "hide=pattern" in page.url
    page.get_by_role("button", name="Back to the library").click()
    page.wait_for_function(f"() => ({lit})() === 0")


def test_a_dot_shows_its_clip(visit: Visit, mapped: Service) -> None:
    page = visit(mapped, "/explore?map=frame&method=pca")
    map_drawn(page)
    page.wait_for_function("() => document.getElementById('plot').data.length > 2")
    place = dots(page)[0]
    point_at(page, place)
    card = page.locator("#hover")
    card.wait_for()
    card.locator("video.on").wait_for()
    time_said = card.locator(".at").inner_text()
    minutes, seconds = time_said.split(":")
    at = int(minutes) * 60 + float(seconds)
    assert card.locator("video").evaluate("video => video.currentTime") >= at - 0.1
    page.mouse.click(*place)
    page.locator("#detail video").wait_for()
    assert card.is_hidden()
    page.wait_for_function("at => document.querySelector('#detail video').currentTime >= at - 0.1", arg=at)


def test_a_map_grows_where_it_stands(own_library: Service, visit: Visit, clips: list[Path]) -> None:
    page = visit(own_library, "/explore?view=map&method=pca", clock=True)
    map_drawn(page)
    view = """() => {
        const { data, layout } = document.getElementById("plot");
        const dots = data.slice(0, -1).flatMap(({ x, y }) => Array.from(x, (one, n) => `${one} ${y[n]}`));
        return { dots: dots.sort(), x: layout.xaxis.range, y: layout.yaxis.range };
    }"""
    whole = page.evaluate(view)
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_function(f"whole => JSON.stringify(({view})()) !== JSON.stringify(whole)", arg=whole)
    before = page.evaluate(view)
    assert len(before["dots"]) == 3
    with own_library.client() as client:
        assert upload(client, clips[3]).status_code == 201
        until(lambda: map_of(client, method="pca")["placed"] == 1)
    look_at_map(page)
    page.get_by_text("1 placed since the fit").wait_for()
    after = page.evaluate(view)
    assert len(after["dots"]) == 4
    assert set(before["dots"]) < set(after["dots"])  # no dot moved
    assert (after["x"], after["y"]) == (before["x"], before["y"])  # the view did not move
    page.get_by_role("button", name="Fit again").click()
    page.get_by_text("1 placed since the fit").wait_for(state="hidden")
    page.locator("#map-note", has_text="Fitting again").wait_for(state="hidden")
    map_drawn(page)
    page.locator("#legend").get_by_role("button", name="No category").wait_for()


def test_a_map_that_takes_long_is_told_of_and_cancelled(visit: Visit, library: Service) -> None:
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
    page.get_by_text("Fitting a map of 1,234 clips").wait_for()
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "40"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The fit was cancelled").wait_for()
    page.get_by_role("button", name="Fit the map").click()
    page.get_by_text("No space left on the device.").wait_for()
    page.get_by_role("button", name="Try again").wait_for()
