"""Everybody can use the page: nothing that axe calls serious, nothing wider than a phone; and the docs page works."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import services
from tests.support.page import PHONE, Visit, lasso, settled, still
from tests.support.server import Service

if TYPE_CHECKING:
    from playwright.sync_api import Page


def _choose(page: Page) -> None:
    count = lasso(page)
    page.locator("#selected-grid .card").nth(count - 1).wait_for()


def _choose_on_map(page: Page) -> None:
    lasso(page)
    page.locator("#map-selected").wait_for()


def _open(page: Page) -> None:
    page.locator("#grid .card h2 a").first.click()
    page.locator("#detail video").wait_for()


def _edit(page: Page) -> None:
    _open(page)
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Save").wait_for()


Act = Callable[["Page"], object] | None
VIEWS: dict[str, tuple[str, Act]] = {
    "library": ("/explore?view=clips", None),
    "search": ("/explore?view=clips&q=a+star", None),
    "map": ("/explore?view=map", None),
    "map in three dimensions": ("/explore?view=map&d=3", None),
    "selection": ("/explore", _choose),
    "clip": ("/explore?view=clips", _open),
    "editing": ("/explore?view=clips", _edit),
}
AXE = """async () => (await axe.run()).violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html.slice(0, 160)).join(" | ")}`)"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, out of the package that brings it to Playwright."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        services.missing("axe-playwright-python is not installed")
        raise AssertionError  # not reached
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_stands_in_anyones_way(visit: Visit, library: Service, axe: str, view: str, scheme: str) -> None:
    address, act = VIEWS[view]
    page = visit(library, address, color_scheme=scheme, reduced_motion="reduce")
    settled(page)
    if act:
        act(page)
    still(page)
    page.evaluate(axe)
    assert page.evaluate(AXE) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_scrolls_only_downwards(visit: Visit, library: Service, view: str) -> None:
    address, act = VIEWS[view]
    if view == "selection":
        address, act = "/explore?view=map", _choose_on_map
    page = visit(library, address, viewport=PHONE)
    settled(page)
    if act:
        act(page)
    still(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_docs_page_asks_the_service_under_its_own_policy(visit: Visit, library: Service) -> None:
    page = visit(library, "/docs")
    page.locator("#operations-service-categories_v1_categories_get, [id*=categories]").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status").get_by_text("200").wait_for()
