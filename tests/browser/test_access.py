"""Tests of accessibility and small screens on the page (axe-core), and of the docs page."""

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


Views = dict[str, tuple[str, Callable[["Page"], object] | None]]
LISTS: Views = {
    "library": ("/explore?view=clips", None),
    "clip": ("/explore?view=clips", _open),
    "editing": ("/explore?view=clips", _edit),
}
MAPS: Views = {
    "search": ("/explore?q=a+star", None),
    "map": ("/explore?view=map", None),
    "map in three dimensions": ("/explore?view=map&d=3", None),
    "selection": ("/explore", _choose),
}
ON_A_PHONE: Views = {**MAPS, "selection": ("/explore?view=map", _choose_on_map)}
AXE = """async () => (await axe.run()).violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html.slice(0, 160)).join(" | ")}`)"""


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the script of axe-core from the package that bundles axe-core for Playwright."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        services.missing("axe-playwright-python is not installed")
        raise AssertionError  # unreachable
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def _find_obstacles(page: Page, act: Callable[[Page], object] | None, axe: str) -> list[str]:
    settled(page)
    if act:
        act(page)
    still(page)
    page.evaluate(axe)
    found: list[str] = page.evaluate(AXE)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", LISTS)
def test_nothing_stands_in_anyones_way(visit: Visit, library: Service, axe: str, view: str, scheme: str) -> None:
    address, act = LISTS[view]
    page = visit(library, address, color_scheme=scheme, reduced_motion="reduce")
    assert _find_obstacles(page, act, axe) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", MAPS)
def test_nothing_about_a_map_stands_in_anyones_way(
    visit: Visit, mapped: Service, axe: str, view: str, scheme: str
) -> None:
    address, act = MAPS[view]
    page = visit(mapped, address, color_scheme=scheme, reduced_motion="reduce")
    assert _find_obstacles(page, act, axe) == []


def _find_width(page: Page, act: Callable[[Page], object] | None) -> int:
    settled(page)
    if act:
        act(page)
    still(page)
    width: int = page.evaluate("() => document.documentElement.scrollWidth")
    return width


@pytest.mark.parametrize("view", LISTS)
def test_a_phone_scrolls_only_downwards(visit: Visit, library: Service, view: str) -> None:
    address, act = LISTS[view]
    assert _find_width(visit(library, address, viewport=PHONE), act) <= PHONE["width"]


@pytest.mark.parametrize("view", ON_A_PHONE)
def test_a_phone_with_a_map_scrolls_only_downwards(visit: Visit, mapped: Service, view: str) -> None:
    address, act = ON_A_PHONE[view]
    assert _find_width(visit(mapped, address, viewport=PHONE), act) <= PHONE["width"]


def test_the_docs_page_asks_the_service_under_its_own_policy(visit: Visit, library: Service) -> None:
    page = visit(library, "/docs")
    page.locator("#operations-service-categories_v1_categories_get, [id*=categories]").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status").get_by_text("200").wait_for()
