"""The README and the guide as text: pages, their code blocks, and the single commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "service" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (README, *PAGES)}
ALL = "\n".join(TEXTS.values())


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """Yield the shell commands of a page: continued lines joined, comments removed, `a && b` apart."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s{2,}|^\s*)# .*$", "", line).strip()
            yield from (one.strip() for one in command.split(" && ") if one.strip())


def prose(text: str) -> str:
    """Return the text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def page_of(path: str) -> Path:
    """Return the file of a guide page from the path used in a link."""
    return (DOCS / path).resolve()
