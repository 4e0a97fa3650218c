"""Tests of the page address: it restores the view, and the history steps through the user's choices."""

from __future__ import annotations

from tests.support.page import Visit, answered, expect_shown, map_drawn, search, shown, weigh
from tests.support.server import Service


def test_the_address_is_the_view(visit: Visit, mapped: Service) -> None:
    page = visit(mapped)
    map_drawn(page)
    search(page, "a star")
    weigh(page, 0.4)
    page.wait_for_url("**w=0.4**")
    page.locator("#category").select_option("sea")
    page.locator("#map-kind").select_option("frame")
    page.locator("#map-method").select_option("pca")
    page.get_by_role("button", name="3D").click()
    page.locator("#legend").get_by_role("button", name="Pattern").click()
    page.locator("#grid .card h2 a").first.click()
    page.locator("#detail video").wait_for()
    answered(page)
    before = shown(page)
    left, title = page.url.removeprefix(mapped.url), page.locator("#detail-title").inner_text()

    page.go_back()  # closes the clip
    page.locator("#detail").wait_for(state="hidden")
    page.go_back()  # undoes the legend
    page.go_back()  # undoes three dimensions
    assert page.get_by_role("button", name="2D").get_attribute("aria-pressed") == "true"
    page.go_forward()
    assert page.get_by_role("button", name="3D").get_attribute("aria-pressed") == "true"
    page.close()  # two pages that both draw in three dimensions slow each other down

    other = visit(mapped, left)
    other.locator("#detail video").wait_for()
    assert other.locator("#detail-title").inner_text() == title
    other.keyboard.press("Escape")
    expect_shown(other, before)
    assert other.get_by_role("searchbox").input_value() == "a star"
    assert other.locator("#weight").input_value() == "60"
    assert other.locator("#category").input_value() == "sea"
    assert other.locator("#map-kind").input_value() == "frame"
    assert other.locator("#map-method").input_value() == "pca"
    assert other.get_by_role("button", name="3D").get_attribute("aria-pressed") == "true"
    map_drawn(other)
    hidden = other.locator("#legend").get_by_role("button", name="Pattern")
    assert hidden.get_attribute("aria-pressed") == "false"


def test_what_is_chosen_while_a_closed_clip_leaves_the_address_holds(visit: Visit, library: Service) -> None:
    page = visit(library, "/explore?view=clips", clock=True)
    # Simulate a busy browser that delays the step back.
    page.evaluate("""() => {
        const back = history.back.bind(history);
        history.back = () => setTimeout(back, 500);
        window.stepped = new Promise(done => addEventListener("popstate", done, { once: true }));
    }""")
    page.clock.pause_at(page.evaluate("() => Date.now() + 1000"))
    page.locator("#grid .card h2 a").first.click()
    page.get_by_role("button", name="Close").click()
    category = page.locator("#category option").nth(1).get_attribute("value")
    page.locator("#category").select_option(category)
    with library.client() as client:
        listed = client.get("/v1/videos", params={"category": category}).json()["items"]
    page.clock.run_for(500)
    page.evaluate("() => window.stepped.then(() => null)")
    page.clock.resume()
    page.wait_for_url("**/explore?*category=*")
    expect_shown(page, [one["id"] for one in listed])
    assert "video=" not in page.url
    assert page.locator("dialog[open]").count() == 0
