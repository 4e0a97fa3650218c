"""What a user does on the explorer page and sees of it, in the words of Playwright."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx

from tests.support.wait import until

if TYPE_CHECKING:
    from playwright.sync_api import Download, Page

Visit = Callable[..., "Page"]
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 360, "height": 740}
PAGE = 48  # hits that the page asks for


# --- the list


def shown(page: Page, grid: str = "grid") -> list[str]:
    """The ids of the clips on show, in their order."""
    ids: list[str] = page.locator(f"#{grid} .card h2 a").evaluate_all(
        "all => all.map(link => new URL(link.href).searchParams.get('video'))"
    )
    return ids


def expect_shown(page: Page, ids: list[str], grid: str = "grid") -> None:
    """Wait until these clips are on show, in this order."""
    until(lambda: shown(page, grid) == ids, what=lambda: f"{ids}, on show are {shown(page, grid)}", every=0.05)


def search(page: Page, words: str) -> None:
    """Ask, and wait for the answer."""
    page.get_by_role("searchbox").fill(words)
    page.keyboard.press("Enter")
    page.locator("#results-title", has_text=words).wait_for()
    answered(page)


def asked(page: Page, **parameters: str) -> None:
    """Wait until the address says so."""
    for name, value in parameters.items():
        page.wait_for_function(
            "([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value]
        )


def answered(page: Page) -> None:
    """Wait until the list shows the answer to what was asked last."""
    page.locator("#grid:not([aria-busy])").wait_for(state="attached")


def weigh(page: Page, weight: float) -> None:
    """Move the slider to where what is seen counts by `weight`, and what is written by the rest."""
    page.locator("#weight").fill(str(round((1 - weight) * 100)))


def weights(weight: float) -> dict[str, float]:
    """The same in a request."""
    return {"video_weight": weight, "text_weight": round(1 - weight, 6)}


def ids_of(answer: httpx.Response) -> list[str]:
    """The ids of an answer's hits, in their order."""
    assert answer.status_code == 200, answer.text
    return [item["video"]["id"] for item in answer.json()["items"]]


def save(page: Page, label: str) -> Download:
    """Press a button that gives a file."""
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return download.value


# --- files that are dropped

_DROP = """async ({ target, name, type, bytes }) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(bytes), one => one.charCodeAt(0))], name, { type }));
    const how = { dataTransfer: data, bubbles: true, cancelable: true };
    const fire = (on, kind) => on.dispatchEvent(new DragEvent(kind, how));
    fire(document.body, "dragenter");
    const shown = [...document.querySelectorAll("#drop:not([hidden]) .drop-place:not([hidden])")].map(({ id }) => id);
    fire(document.querySelector(target), "drop");
    return shown;
}"""


def drop(page: Page, target: str, name: str, kind: str, content: bytes) -> list[str]:
    """Drag a file of this media type over the page and drop it; give the ids of the places that were offered."""
    how = {"target": target, "name": name, "type": kind, "bytes": base64.b64encode(content).decode()}
    offered: list[str] = page.evaluate(_DROP, how)
    return offered


# --- the map


def map_drawn(page: Page) -> None:
    """Wait until the map is there."""
    page.locator("#map-tools").wait_for()
    page.locator("#map-state").wait_for(state="hidden")


def map_of(client: httpx.Client, method: str = "umap") -> dict[str, Any]:
    """The map of all clips in two dimensions, as the service has it; it is laid out already."""
    body = {"embedding": "aggregated", "method": method, "dimensions": 2}
    answer = client.post("/v1/projections", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def look_at_map(page: Page) -> None:
    """Have the page ask now how far its map is, as it does every few seconds. It is one with a `clock`."""
    page.clock.fast_forward(5000)


def dots(page: Page) -> list[tuple[float, float]]:
    """Where the dots stand in the window, category by category."""
    places: list[tuple[float, float]] = page.locator("#plot").evaluate("""plot => {
        const { xaxis, yaxis } = plot._fullLayout;
        const { left, top } = plot.getBoundingClientRect();
        return plot.data.slice(0, -1).filter(trace => trace.visible).flatMap(trace => Array.from(trace.x, (x, n) =>
            [left + xaxis._offset + xaxis.c2p(x), top + yaxis._offset + yaxis.c2p(trace.y[n])]));
    }""")
    return places


def point_at(page: Page, place: tuple[float, float]) -> None:
    """Move the pointer to a dot, from beside it."""
    x, y = place
    page.mouse.move(x - 40, y)
    page.mouse.move(x, y, steps=8)


def lasso(page: Page, share: float = 0.5) -> int:
    """Draw around the dots of the map's left part; give how many that are."""
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
    return sum(x < right for x, _ in dots(page))


# --- the page as a whole


def settled(page: Page) -> None:
    """Wait until the list, the map and the line about the service's health say what they have to say."""
    answered(page)
    page.locator("#health[data-kind=ok]").wait_for()
    if page.locator("#map").is_visible():
        map_drawn(page)


def still(page: Page) -> None:
    """Wait until nothing moves but what moves for ever, and two frames have been drawn since."""
    page.evaluate("""async () => {
        const ends = one => Number.isFinite(one.effect?.getComputedTiming().endTime);
        await Promise.all(document.getAnimations().filter(ends).map(one => one.finished.catch(() => {})));
        for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
    }""")
