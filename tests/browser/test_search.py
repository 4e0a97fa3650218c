"""Tests of text, image and clip searches on the page: the list shows the service's search results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page import (
    PAGE,
    Visit,
    answered,
    asked,
    drop,
    expect_shown,
    ids_of,
    search,
    shown,
    weigh,
    weights,
)
from tests.support.server import Service
from tests.support.wait import until


@pytest.mark.parametrize("words", ["yellow stars in the sky", "a striped background"])
def test_the_slider_orders_as_the_service_does(visit: Visit, library: Service, words: str) -> None:
    page = visit(library, "/explore?view=clips")
    search(page, words)
    orders = set()
    with library.client() as client:
        for weight in (0.7, 0.0, 0.35, 1.0):
            weigh(page, weight)
            expected = ids_of(client.post("/v1/search/text", json={"query": words, "k": PAGE, **weights(weight)}))
            expect_shown(page, expected)
            orders.add(tuple(expected))
    assert len(orders) > 1
    asked(page, w="1")
    # The keyboard works too: one step towards the text weight.
    page.locator("#weight").press("ArrowRight")
    with library.client() as client:
        expect_shown(page, ids_of(client.post("/v1/search/text", json={"query": words, "k": PAGE, **weights(0.95)})))


def test_a_hit_says_its_score_and_plays_from_its_moment(visit: Visit, library: Service) -> None:
    words = "a shape that moves"
    with library.client() as client:
        hits = client.post("/v1/search/text", json={"query": words, "k": PAGE, **weights(0.7)}).json()["items"]
    place, hit = next((n, hit) for n, hit in enumerate(hits) if 0.5 < hit["moment"]["time"] < 3)
    page = visit(library, "/explore?view=clips")
    search(page, words)
    card = page.locator("#grid .card").nth(place)
    assert f"{hit['score']:.2f}".replace("-", "\u2212") in card.locator(".score-value").inner_text()
    card.locator("h2 a").click()
    player = page.locator("#detail video")
    player.wait_for()
    start = hit["moment"]["time"]
    page.wait_for_function("() => document.querySelector('#detail video').currentTime > 0.3")
    first = player.evaluate("video => video.currentTime")
    assert start - 0.05 <= first < start + 2
    until(lambda: player.evaluate("video => video.currentTime") != first)  # it plays
    assert not player.evaluate("video => video.paused")
    # In the list, the clip plays from there under the pointer.
    page.keyboard.press("Escape")
    page.locator("#detail").wait_for(state="hidden")
    page.mouse.move(1, 1)
    card.scroll_into_view_if_needed()
    card.hover()
    page.wait_for_function(
        "start => [...document.querySelectorAll('#grid video')].some(v => v.currentTime >= start)", arg=start
    )


def test_a_picture_and_a_clip_are_searched_with(visit: Visit, library: Service, clips: list[Path]) -> None:
    page = visit(library, "/explore?view=clips")
    page.locator("#grid .card").first.wait_for()
    with library.client() as client:
        wanted = client.get("/v1/videos", params={"category": "sea"}).json()["items"][0]["id"]
        picture = client.get(f"/v1/videos/{wanted}/thumbnail").content
        # An image can only be dropped on the search.
        assert drop(page, "main", "waves.jpg", "image/jpeg", picture) == ["drop-search"]
        page.get_by_role("heading", name="waves.jpg").wait_for()

        def by_picture(weight: float) -> list[str]:
            form = {"k": str(PAGE), **{name: str(value) for name, value in weights(weight).items()}}
            return ids_of(client.post("/v1/search/image", files={"file": ("waves.jpg", picture)}, data=form))

        expect_shown(page, by_picture(0.7))
        assert shown(page)[0] == wanted
        for weight in (0.2, 1.0):
            weigh(page, weight)
            asked(page, w=f"{weight:g}")  # wait for the service's order; before, the page shows its own estimate
            answered(page)
            expect_shown(page, by_picture(weight))
        assert page.locator("#asked-picture").evaluate("image => image.naturalWidth") > 0

        clip = clips[3]
        offered = drop(page, "#drop-search", clip.name, "video/mp4", clip.read_bytes())
        assert offered == ["drop-search", "drop-add"]
        page.get_by_role("heading", name=clip.name).wait_for()
        page.get_by_text("has no caption, so only visual similarity counts").wait_for(state="hidden")  # at this weight
        form = {"k": str(PAGE), **{name: str(value) for name, value in weights(1).items()}}
        with clip.open("rb") as file:
            expect_shown(page, ids_of(client.post("/v1/search/video", files={"file": (clip.name, file)}, data=form)))
        assert client.get("/v1/info").json()["videos"] == {"ready": len(clips)}  # the query clip was not stored
    page.go_back()  # the query image is still available
    page.get_by_role("heading", name="waves.jpg").wait_for()
    page.reload()
    page.get_by_text("no longer has the file").wait_for()
