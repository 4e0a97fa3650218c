"""Actions and observations of a user on the explorer page, through Playwright."""

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
PAGE = 48  # Search results per request of the page.


# --- the list


def shown(page: Page, grid: str = "grid") -> list[str]:
    """Return the ids of the displayed clips, in their order."""
    ids: list[str] = page.locator(f"#{grid} .card h2 a").evaluate_all(
        "all => all.map(link => new URL(link.href).searchParams.get('video'))"
    )
    return ids


def expect_shown(page: Page, ids: list[str], grid: str = "grid") -> None:
    """Wait until exactly these clips are displayed, in this order."""
    until(lambda: shown(page, grid) == ids, what=lambda: f"{ids}, on show are {shown(page, grid)}", every=0.05)


def search(page: Page, words: str) -> None:
    """Type a query, press Enter and wait for the search results."""
    page.get_by_role("searchbox").fill(words)
    page.keyboard.press("Enter")
    page.locator("#results-title", has_text=words).wait_for()
    answered(page)


def asked(page: Page, **parameters: str) -> None:
    """Wait until the page's address has these query parameters."""
    for name, value in parameters.items():
        page.wait_for_function(
            "([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value]
        )


def answered(page: Page) -> None:
    """Wait until the list displays the results of the latest query."""
    page.locator("#grid:not([aria-busy])").wait_for(state="attached")


def weigh(page: Page, weight: float) -> None:
    """Move the slider to the visual weight `weight`; the text weight is 1 - `weight`."""
    page.locator("#weight").fill(str(round((1 - weight) * 100)))


def weights(weight: float) -> dict[str, float]:
    """Return the request parameters that correspond to `weigh(page, weight)`."""
    return {"video_weight": weight, "text_weight": round(1 - weight, 6)}


def ids_of(answer: httpx.Response) -> list[str]:
    """Return the video ids of a response's search results, in their order."""
    assert answer.status_code == 200, answer.text
    return [item["video"]["id"] for item in answer.json()["items"]]


def save(page: Page, label: str) -> Download:
    """Click the button with this label and return the download that the click starts."""
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return download.value


# --- dropped files

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
    """Drag a file over the page and drop it on the element `target` (a CSS selector).

    Args:
        page: The explorer page.
        target: CSS selector of the element that receives the drop.
        name: File name.
        kind: Media type.
        content: The file's bytes.

    Returns:
        The ids of the drop zones that were visible during the drag.
    """
    how = {"target": target, "name": name, "type": kind, "bytes": base64.b64encode(content).decode()}
    offered: list[str] = page.evaluate(_DROP, how)
    return offered


# --- the map


def map_drawn(page: Page) -> None:
    """Wait until the map is drawn."""
    page.locator("#map-tools").wait_for()
    page.locator("#map-state").wait_for(state="hidden")


def map_of(client: httpx.Client, method: str = "umap") -> dict[str, Any]:
    """Return the service's two-dimensional projection of all clips, which must already be fitted."""
    body = {"embedding": "aggregated", "method": method, "dimensions": 2}
    answer = client.post("/v1/projections", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def look_at_map(page: Page) -> None:
    """Make the page poll the state of its projection now, instead of every few seconds.

    The page must have Playwright's `clock` installed.
    """
    page.clock.fast_forward(5000)


def dots(page: Page) -> list[tuple[float, float]]:
    """Return the window positions of the visible dots in pixels, category by category."""
    places: list[tuple[float, float]] = page.locator("#plot").evaluate("""plot => {
        const { xaxis, yaxis } = plot._fullLayout;
        const { left, top } = plot.getBoundingClientRect();
        return plot.data.slice(0, -1).filter(trace => trace.visible).flatMap(trace => Array.from(trace.x, (x, n) =>
            [left + xaxis._offset + xaxis.c2p(x), top + yaxis._offset + yaxis.c2p(trace.y[n])]));
    }""")
    return places


def point_at(page: Page, place: tuple[float, float]) -> None:
    """Move the pointer to a dot, starting 40 pixels to its left."""
    x, y = place
    page.mouse.move(x - 40, y)
    page.mouse.move(x, y, steps=8)


def lasso(page: Page, share: float = 0.5) -> int:
    """Draw a lasso around the left `share` of the map; return the number of dots inside."""
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
    """Wait until the list, the map (if visible) and the health line have finished loading."""
    answered(page)
    page.locator("#health[data-kind=ok]").wait_for()
    if page.locator("#map").is_visible():
        map_drawn(page)


def still(page: Page) -> None:
    """Wait until all finite animations have ended and two more frames have been drawn."""
    page.evaluate("""async () => {
        const ends = one => Number.isFinite(one.effect?.getComputedTiming().endTime);
        await Promise.all(document.getAnimations().filter(ends).map(one => one.finished.catch(() => {})));
        for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
    }""")
