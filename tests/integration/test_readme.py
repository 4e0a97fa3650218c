"""The README's commands, settings and addresses are those that exist; the founding document's sentences stand in it."""

from __future__ import annotations

import re

import pytest
import typer

from service import cli, config
from tests.support.openapi import document
from tests.support.paths import ROOT, SHARED

README = (ROOT / "README.md").read_text(encoding="utf-8")
SEED = SHARED / "seed.txt"


def _commands(group: typer.Typer) -> set[str]:
    names = {
        command.name or command.callback.__name__
        for command in group.registered_commands
        if command.callback and not command.hidden
    }
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        names |= {f"{inner.name} {name}" for name in _commands(inner.typer_instance)}
    return names


def test_every_command_is_told_and_every_told_command_exists() -> None:
    exist = {name.replace("_", "-") for name in _commands(cli.app)}
    told = set(re.findall(r"reelsrs ((?:db|keys|index) \w+|[a-z]+)", README))
    assert told == exist


def test_every_option_in_an_example_exists() -> None:
    for line in re.findall(r"^(?:\S*/)?reelsrs (.*)$", README, re.MULTILINE):
        words = line.split()
        name = words[: 2 if words[0] in ("db", "keys", "index") else 1]
        options = set(re.findall(r"--[a-z-]+", line.split("&&")[0]))
        help_text = _help(*name)
        assert options <= set(re.findall(r"--[a-z-]+", help_text)), line


def _help(*name: str) -> str:
    from typer.testing import CliRunner

    return CliRunner().invoke(cli.app, [*name, "--help"], env={"COLUMNS": "200"}).output


def test_the_settings_are_told_with_their_defaults() -> None:
    told = dict(re.findall(r"^\| `(REELSRS_\w+)` \| (?:`([^`]*)`)? ?\|", README, re.MULTILINE))
    exist = {row["name"]: row["value"] or "" for row in config.describe(config.load())}
    assert told == exist


def test_the_addresses_exist() -> None:
    paths = document()["paths"]
    for address in re.findall(r"http://127\.0\.0\.1:8000(/[^\s\"?>]*)", README):
        template = address.replace("$ID", "{video_id}").replace("$MAP", "{projection_id}")
        template = template.replace("$GENERATION", "{generation_id}")
        assert template in paths or template in ("/docs", "/explore"), address


def test_the_founding_sentences_stand() -> None:
    if not SEED.exists():
        pytest.skip(f"the founding document is not here: {SEED}")
    words = " ".join(README.split())
    prose = re.sub(r"```.*?```", "", SEED.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in prose.splitlines():
        sentence = " ".join(line.strip().strip("#").split())
        assert sentence in words, sentence


def test_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_table_of_speeds_is_what_the_benchmarks_printed() -> None:
    from tests.bench.table import results, written

    assert written(README, results()) == README, "run python tests/bench/table.py"
