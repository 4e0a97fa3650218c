"""Tests of the explorer page: complete, self-hosted, and limited to operations that the service has."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from tests.support.openapi import document
from tests.support.paths import ROOT

PAGE = ROOT / "service" / "explore"
FILES = sorted(path for path in PAGE.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": ("text/javascript", "application/javascript"),
    ".svg": "image/svg+xml",
}
NAMESPACES = {"http://www.w3.org/2000/svg"}  # XML namespace, never fetched


class _Markup(HTMLParser):
    """Collect the references of a page and any markup that a strict content security policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.refused: list[str] = []
        self.ids: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").strip().lower().startswith("javascript:"):
                self.refused.append(f"<{tag} {name}>")
            if name in ("src", "href") and value and not value.startswith("#"):
                self.references.append(value)
            if name == "id" and value:
                self.ids.append(value)
        if tag == "style":
            self.refused.append("<style>")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and data.strip():
            self.refused.append("an inline script")


def _markup() -> _Markup:
    parsed = _Markup()
    parsed.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    parsed.close()
    return parsed


def _assets() -> set[str]:
    """Return the addresses of all assets that the page, its modules and its style sheet reference."""
    found = {reference for reference in _markup().references if reference.startswith("/explore/assets/")}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".js":
            names = re.findall(r"""(?:from|import)\s*\(?\s*["']([^"']+)["']""", text)
            assert all(name.startswith("./") for name in names), f"{path.name} imports {names}"
            found |= {"/explore/assets/" + name.removeprefix("./") for name in names}
        if path.suffix == ".css":
            assert "url(" not in text
            assert "@import" not in text
    return found


def test_the_page_and_all_it_references_are_served(client: httpx.Client) -> None:
    page = client.get("/explore")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == (PAGE / "index.html").read_text(encoding="utf-8")
    for reference in sorted(_assets() | set(_markup().references)):
        answer = client.get(reference)
        assert answer.status_code == 200, reference
        if suffix := Path(reference).suffix:
            assert answer.headers["content-type"].split(";")[0] in TYPES[suffix], reference


def test_every_file_is_used() -> None:
    assert {Path(asset).name for asset in _assets()} | {"index.html"} == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"""\b(?:https?|wss?|ftp)://[^\s"'`<>)]*""", text)) <= NAMESPACES
    assert not re.search(r"""["'`(=]\s*//[\w.-]""", text), "an address without a scheme"


def test_the_page_keeps_a_strict_content_security_policy() -> None:
    markup = _markup()
    assert markup.refused == []
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', (PAGE / "index.html").read_text(encoding="utf-8"))
    assert found
    policy = {words[0]: words[1:] for words in (part.split() for part in found.group(1).split(";"))}
    assert policy["default-src"] == ["'self'"]
    # The plotting library compiles its drawing code and writes a style element. Still, inline scripts and style
    # attributes stay forbidden, and no other host may be contacted.
    assert policy.pop("script-src") == ["'self'", "'unsafe-eval'"]
    assert policy.pop("style-src-elem") == ["'self'", "'unsafe-inline'"]
    assert policy["style-src"] == ["'self'"]
    for name, sources in policy.items():
        allowed = {"'self'", "blob:"} if name in ("img-src", "media-src") else {"'self'", "'none'"}
        assert set(sources) <= allowed, name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_users_wrote_is_never_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in (
        r"innerHTML",
        r"outerHTML",
        r"insertAdjacentHTML",
        r"document\.write",
        r"DOMParser",
        r"\beval\b",
        r"new Function",
        r"""setTimeout\(\s*["'`]""",
        r"""["'`]on[a-z]+["'`]\s*,""",
        r"javascript:",
    ):
        assert not re.search(word, text), word


def test_the_elements_that_the_scripts_ask_for_are_there_once() -> None:
    ids = _markup().ids
    assert len(ids) == len(set(ids))
    asked = {name for path in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', path.read_text(encoding="utf-8"))}
    assert len(asked) > 20
    assert asked <= set(ids)


def test_the_paths_that_the_scripts_ask_for_are_documented() -> None:
    documented = {re.sub(r"\{[^}]+\}", "{}", path) for path in document()["paths"]}
    asked = set()
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        for literal in re.findall(r"""["'`](/(?:v1|livez|readyz|metrics)[^"'`]*)["'`]""", text):
            asked.add(re.sub(r"\$\{[^}]+\}", "{}", literal))
    assert {"/v1/search/text", "/v1/videos/{}/events", "/readyz"} <= asked
    assert asked <= documented
