"""The guide: Markdown pages of `service/docs`, rendered at `/guide`, with a search over their sections.

A page reads the same on a code host: links between pages are relative (`search.md#moments`) and are rewritten here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = Path(__file__).parents[1] / "docs"
_CONTENTS = "README"
_SNIPPET_CHARACTERS = 160
_PAGE_LINK = re.compile(r"([a-z-]+|README)\.md(#.*)?$")
# No script at all: a page of the guide is text.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under one heading: its address, the title of the page, the heading, and the text below it."""

    address: str
    page: str
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered page: its title, its body as HTML, its headings (level, anchor, text), and its sections."""

    title: str
    body: str
    headings: tuple[tuple[int, str, str], ...]
    sections: tuple[Section, ...]


def add_guide(app: FastAPI) -> None:
    """Add the guide's pages, search and static files to the application."""
    app.mount("/guide/assets", StaticFiles(directory=DOCS), name="guide-assets")

    @app.get("/guide", include_in_schema=False)
    def contents(q: Annotated[str, Query(max_length=200)] = "") -> HTMLResponse:
        if not q.strip():
            return _response(page(_CONTENTS), _CONTENTS)
        found = search(q)
        count = f"{len(found)} section{'' if len(found) == 1 else 's'}"
        body = [f"<h1>Search</h1><p>{count} with <b>{html.escape(q)}</b></p>"]
        for one in found:
            where = html.escape(one.page if one.heading == one.page else f"{one.page}: {one.heading}")
            body.append(f'<p><a href="{one.address}">{where}</a><br>{_snippet(one.text, q)}</p>')
        return _response(Page("Search", "\n".join(body), (), ()), "", q)

    @app.get("/guide/{name}", include_in_schema=False)
    def one_page(name: str) -> HTMLResponse:
        if name not in names():
            raise HTTPException(404, f"the guide has no page {name!r}")
        return _response(page(name), name)


@cache
def names() -> tuple[str, ...]:
    """Return the names of all pages in the order of the contents page, which comes first."""
    contents = (DOCS / f"{_CONTENTS}.md").read_text(encoding="utf-8")
    return (_CONTENTS, *re.findall(r"\]\(([a-z-]+)\.md\)", contents))


@cache
def page(name: str) -> Page:
    """Return a page of the guide, rendered. `name` is one of `names()`."""
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse((DOCS / f"{name}.md").read_text(encoding="utf-8"))
    headings = []
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            text = _plain(tokens[number + 1])
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")  # as code hosts do
            token.attrs["id"] = anchor
            headings.append((int(token.tag[1]), anchor, text))
        for inner in token.children or ():
            if (link := inner.attrs.get("href")) is not None:
                inner.attrs["href"] = _PAGE_LINK.sub(_on_the_service, str(link))
            if (source := inner.attrs.get("src")) is not None:
                inner.attrs["src"] = f"/guide/assets/{source}"
    title = headings[0][2]
    body = str(parser.renderer.render(tokens, parser.options, {}))
    # Wide blocks scroll by themselves, by keyboard too.
    body = body.replace("<pre>", '<pre tabindex="0">').replace("</table>", "</table></div>")
    body = body.replace("<table>", '<div class="table" tabindex="0"><table>')
    return Page(title, body, tuple(headings), tuple(_sections(name, title, tokens)))


def search(text: str) -> list[Section]:
    """Return the sections that contain every word of `text`; first those with the words in their heading.

    Words are compared without case, as parts of words: `map` finds `maps`.
    """
    words = text.lower().split()
    if not words:
        return []
    ranked = []
    for number, section in enumerate(section for name in names() for section in page(name).sections):
        heading, whole = section.heading.lower(), f"{section.heading} {section.text}".lower()
        if all(word in whole for word in words):
            ranked.append((-sum(word in heading for word in words), number, section))
    return [section for _, _, section in sorted(ranked, key=lambda one: one[:2])]


def _on_the_service(link: re.Match[str]) -> str:
    anchor = link[2] or ""
    return _address(link[1]) + anchor


def _address(name: str) -> str:
    return "/guide" if name == _CONTENTS else f"/guide/{name}"


def _sections(name: str, title: str, tokens: list[Token]) -> Iterator[Section]:
    address = _address(name)
    heading, anchor, texts = title, "", list[str]()
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            if texts:
                yield Section(address + anchor, title, heading, " ".join(texts))
            heading, texts = _plain(tokens[number + 1]), []
            anchor = "" if token.tag == "h1" else f"#{token.attrs['id']}"
        elif token.type == "inline" and tokens[number - 1].type != "heading_open":
            texts.append(_plain(token))
        elif token.type == "fence":
            texts.append(" ".join(token.content.split()))
    yield Section(address + anchor, title, heading, " ".join(texts))


def _plain(inline: Token) -> str:
    return "".join(" " if one.type == "softbreak" else one.content for one in inline.children or ())


def _snippet(text: str, query: str) -> str:
    words = [re.escape(word) for word in query.split()]
    first = re.search("|".join(words), text, re.IGNORECASE)
    start = max(0, (first.start() if first else 0) - _SNIPPET_CHARACTERS // 2)
    start = text.rfind(" ", 0, start) + 1
    cut = text[start : start + 2 * _SNIPPET_CHARACTERS]
    parts = re.split(f"({'|'.join(words)})", cut, flags=re.IGNORECASE)
    escaped = [html.escape(part) for part in parts]
    marked = "".join(f"<mark>{part}</mark>" if number % 2 else part for number, part in enumerate(escaped))
    return f"{'… ' if start else ''}{marked}{' …' if start + len(cut) < len(text) else ''}"


@cache
def _template() -> Template:
    return Template((DOCS / "page.html").read_text(encoding="utf-8"))


def _response(shown: Page, name: str, query: str = "") -> HTMLResponse:
    links = []
    for one in names():
        title = "Contents" if one == _CONTENTS else page(one).title
        here = ' aria-current="page"' if one == name else ""
        links.append(f'<li><a href="{_address(one)}"{here}>{html.escape(title)}</a></li>')
    below = [
        f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for level, anchor, text in shown.headings if level == 2
    ]
    on_this_page = f'<nav class="here" aria-label="On this page"><ul>{"".join(below)}</ul></nav>' if below else ""
    title = "The ReelsRS guide" if name == _CONTENTS else f"{shown.title} · ReelsRS guide"
    return HTMLResponse(
        _template().substitute(
            title=html.escape(title),
            query=html.escape(query, quote=True),
            pages="".join(links),
            here=on_this_page,
            body=shown.body,
        ),
        headers=_HEADERS,
    )
