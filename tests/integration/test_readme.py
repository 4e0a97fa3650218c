"""Tests that the README and the guide match the code: commands, options, settings, addresses, figures, links."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import typer

from service import cli, config
from tests.support.guide import ALL, DOCS, PAGES, README, TEXTS, blocks, commands, page_of, prose
from tests.support.openapi import document
from tests.support.paths import ROOT, SHARED

SEED = SHARED / "seed.txt"
GROUPS = ("db", "keys", "index")
SOURCES = ("service", "tests", "migrations", ".ci", ".github")
# Words that must not come back in any text.
GONE = ("whoever", "anew", "afresh", "hears", "the way in", "Knows no")


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


def _help(*name: str) -> str:
    from typer.testing import CliRunner

    return CliRunner().invoke(cli.app, [*name, "--help"], env={"COLUMNS": "200"}).output


def test_every_command_is_told_and_every_told_command_exists() -> None:
    exist = {name.replace("_", "-") for name in _commands(cli.app)}
    of = re.compile(r"`reelsrs ((?:db|keys|index) \w+|[a-z]+)")
    assert set(of.findall(TEXTS["service/docs/command-line.md"])) == exist
    assert set(of.findall(ALL)) == exist


def test_every_option_in_an_example_exists() -> None:
    seen = 0
    for text in TEXTS.values():
        for command in commands(text):
            if found := re.fullmatch(r"(?:\w+=\S+ )*(?:\S*/)?reelsrs (.*)", command):
                words = found[1].split()
                help_text = _help(*words[: 2 if words[0] in GROUPS else 1])
                assert set(re.findall(r"--[a-z-]+", found[1])) <= set(re.findall(r"--[a-z-]+", help_text)), command
                seen += 1
    assert seen > 20


def test_the_settings_are_told_with_their_defaults() -> None:
    page = TEXTS["service/docs/configuration.md"]
    told = dict(re.findall(r"^\| `(REELSRS_\w+)` \| (?:`([^`]*)`)? ?\|", page, re.MULTILINE))
    exist = {row["name"]: row["value"] or "" for row in config.describe(config.load())}
    assert told == exist
    assert set(re.findall(r"REELSRS_[A-Z_]+", ALL)) <= set(exist)


def test_a_container_takes_every_setting_but_those_that_the_image_fixes() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8").split("  ports:")[0]
    fixed = {"REELSRS_DATA_DIR", "REELSRS_HOST", "REELSRS_PORT"}
    exist = {row["name"] for row in config.describe(config.load())}
    assert set(re.findall(r"^    (REELSRS_\w+):", compose, re.MULTILINE)) == exist - fixed


def test_the_log_events_are_told_with_their_fields() -> None:
    table = TEXTS["service/docs/operations.md"].split("## Logs")[1].split("\n## ")[0]
    told = {
        event: set(re.findall(r"`(\w+)`", rest)) for event, rest in re.findall(r"^\| `([^`]+)` \|(.*)$", table, re.M)
    }
    exist: dict[str, set[str]] = {}
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.") and node.args:
                event = node.args[0]
                if isinstance(event, ast.Constant) and isinstance(event.value, str):
                    fields = {one.arg for one in node.keywords if one.arg and one.arg != "exc_info"}
                    exist.setdefault(event.value, set()).update(fields)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_loop":  # logs this event name
                exist[ast.literal_eval(node.args[-1])] = {"reason"}
    exist["request"].add("request_id")
    assert told == exist


def test_the_addresses_exist() -> None:
    paths = document()["paths"]
    named = re.findall(r"http://127\.0\.0\.1:8000(/[^\s\"?>`]*)", ALL)
    named += re.findall(r"`(?:GET|POST|PATCH|PUT|DELETE) (/[^\s?`]*)", ALL)
    assert len(named) > 30
    for address in named:
        template = address.replace("$ID", "{video_id}").replace("{id}", "{video_id}")
        template = template.replace("$MAP", "{projection_id}").replace("MAP", "{projection_id}")
        template = template.replace("$GENERATION", "{generation_id}")
        other = template.replace("{video_id}", "{projection_id}")
        assert {template, other} & set(paths) or template in ("/docs", "/explore", "/guide"), address


def test_links_lead_somewhere() -> None:
    anchors = {
        path: {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        }
        for path in PAGES
    }
    for name, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)]+)\)", prose(text)):
            if link.startswith("https://"):
                continue
            target, _, anchor = link.partition("#")
            path = (ROOT / name).parent.joinpath(target).resolve() if target else ROOT / name
            assert path.is_file(), f"{name}: {link}"
            assert not anchor or anchor in anchors[path], f"{name}: {link}"


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|md|json)|(?:[a-z_]+/)+)`", ALL)
    assert len(named) > 20
    for name in named:
        places = [ROOT / name, ROOT / "service" / name]
        assert any(place.exists() for place in places), name


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r"\]\(([a-z-]+\.md)\)", TEXTS["service/docs/README.md"])
    assert sorted(listed) == sorted(path.name for path in PAGES if path.name != "README.md")
    assert page_of("README.md") in PAGES


def test_the_texts_keep_their_length_and_say_things_once() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200
    for path in PAGES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 300, path
    paragraphs = Counter(
        " ".join(one.split())
        for text in TEXTS.values()
        for one in re.split(r"\n\s*\n", prose(text))
        if len(one.split()) > 12
    )
    assert [one for one, count in paragraphs.items() if count > 1] == []


def test_examples_of_json_are_json() -> None:
    found = [json.loads(block) for block in blocks(ALL, "json")]
    assert found


def _tracked() -> list[Path]:
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout: which files are the repository's is not known")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_sentence_of_the_founding_document_stands_anywhere() -> None:
    if not SEED.exists():
        pytest.skip(f"the founding document is not here: {SEED}")
    founding = re.sub(r"```.*?```", "", SEED.read_text(encoding="utf-8"), flags=re.DOTALL)
    split = [one for line in founding.splitlines() for one in re.split(r"(?<=[.:!?])\s", line)]
    sentences = [one for one in (" ".join(re.findall(r"\w+", part.lower())) for part in split) if len(one.split()) > 8]
    assert sentences
    for path in _tracked():
        if path.suffix in (".md", ".py", ".toml", ".html", ".js", ".yml", ".json"):
            words = " ".join(re.findall(r"\w+", path.read_text(encoding="utf-8").lower()))
            for sentence in sentences:
                assert sentence not in words, (path, sentence)


def test_words_that_are_gone_stay_gone() -> None:
    pattern = re.compile(r"\b(" + "|".join(GONE) + r")\b", re.IGNORECASE)
    found = {}
    for path in _tracked():
        if path.suffix in (".md", ".py", ".toml", ".html", ".js", ".css", ".yml", ".json", "") and path != Path(
            __file__
        ):
            words = pattern.findall(path.read_bytes().decode("utf-8", errors="ignore"))
            found[path.relative_to(ROOT).as_posix()] = words
    assert {name: words for name, words in found.items() if words} == {}


def test_pictures_are_there() -> None:
    for name, text in TEXTS.items():
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert ((ROOT / name).parent / path).is_file(), path
    for picture in (DOCS / "images").iterdir():
        assert picture.name in ALL, picture


def test_the_table_of_speeds_is_what_the_benchmarks_printed() -> None:
    from tests.bench.table import PAGE, results, written

    text = PAGE.read_text(encoding="utf-8")
    assert written(text, results()) == text, "run python tests/bench/table.py"
