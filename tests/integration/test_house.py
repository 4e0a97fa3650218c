"""Tests of code size: limits on the length of files and functions, so that a reader can follow them."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.paths import ROOT

LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 50

_SOURCES = sorted([*(ROOT / "service").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def test_no_file_is_longer_than_a_stranger_reads() -> None:
    assert len(_SOURCES) > 100
    assert {str(path.relative_to(ROOT)): _lines(path) for path in _SOURCES if _lines(path) > LONGEST_FILE} == {}


def test_no_function_of_the_service_is_longer_than_a_screen() -> None:
    long = {}
    for path in sorted((ROOT / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # Without its docstring, which says how to call it and is read apart.
                first = node.body[0]
                said = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - said
                if lines > LONGEST_FUNCTION:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert long == {}
