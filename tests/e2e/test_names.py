"""Tests of names that people and file systems give: one folder of everything that went wrong, through every command."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import sqlalchemy as sa

from service.database import db
from service.names import sqlite_url
from tests.support.cli import reelsrs, run

LIBRARY = "lib?1 a#b 100%25 ünï"
BYTES = os.fsdecode(b"\xe9t\xe9")
PERSIAN, FAMILY = "دست\u200cدوز", "\U0001f468\u200d\U0001f469\u200d\U0001f467"
CAFE = "Café"
SRT = "1\n00:00:00,000 --> 00:00:01,000\n<b>spoken</b> words\n"
GOOD = {  # path, with the caption that it should get
    f"{BYTES}/{BYTES}.mp4": None,
    f"{PERSIAN}/{FAMILY}.mp4": "در ساحل",
    f"{unicodedata.normalize('NFD', CAFE)}/one.mp4": "naïve 犬",
    f"{CAFE}/two.mp4": "spoken words",
    f"{CAFE}/three\nlines.mp4": "spoken words",
    f"{CAFE}/[red]:dog:.mp4": "from JSON",
    f"{CAFE}/{'長' * 80}.mp4": None,
    "abroad/four.mp4": None,
}
BAD = {
    "broken/garbage.mp4": "the file is not a video",
    "broken/empty.mp4": "the file is empty",
    "broken/latin.mp4": "latin.txt is not text in UTF-8",
    "broken/unmarked.mp4": "unmarked.txt is not text in UTF-8",
    "broken/long.mp4": "at most 10,000 characters",
    "broken/gone.mp4": "a link that leads nowhere",
    "broken/loop.mp4": "cannot be read",
    "evil\u202egp4./x.mp4": "control characters",
    "gone": "a link that leads nowhere",
}
SKIPPED = {
    "@eaDir": "made by a system",
    "$RECYCLE.BIN": "made by a system",
    ".hidden.mp4": "hidden",
    "raw": "excluded",
    f"{CAFE}/up": "linked again",
    f"{CAFE}/notes.md": "not a clip",
    f"{CAFE}/two.vtt": "",  # used; its neighbour is not
    f"{CAFE}/two.srt": "ignored",
    "top.mp4": "not in the folder of a category",
}


def _make(data: Path, drawn: Path) -> None:
    clips = [path.read_bytes() for path in sorted(drawn.rglob("*.mp4"))]
    (data.parent / "elsewhere").mkdir(parents=True)
    for number, name in enumerate([*GOOD, *BAD, "@eaDir/x.mp4", "$RECYCLE.BIN/x.mp4", "raw/x.mp4", "top.mp4"]):
        path = data / name
        path = data.parent / "elsewhere" / path.name if name.startswith("abroad/") else path
        if not name.endswith(("gone", "gone.mp4", "loop.mp4")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(clips[number % len(clips)] + bytes(number))
    (data / "abroad").symlink_to("../elsewhere", target_is_directory=True)
    (data / PERSIAN / f"{FAMILY}.txt").write_text("در ساحل", encoding="utf-16")
    (data / unicodedata.normalize("NFD", CAFE) / "one.txt").write_text("nai\u0308ve 犬", encoding="utf-8-sig")
    (data / CAFE / "two.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nspoken words\n", encoding="utf-8")
    (data / CAFE / "two.srt").write_text(SRT, encoding="utf-8")
    (data / CAFE / "three\nlines.srt").write_text(SRT, encoding="utf-16")
    (data / CAFE / "[red]:dog:.json").write_text('{"caption": "from JSON"}', encoding="utf-8")
    (data / CAFE / "notes.md").write_text("no clip")
    (data / CAFE / "up").symlink_to("..", target_is_directory=True)
    (data / ".hidden.mp4").write_bytes(b"hidden")
    (data / "broken" / "garbage.mp4").write_bytes(b"garbage")
    (data / "broken" / "empty.mp4").write_bytes(b"")
    (data / "broken" / "latin.txt").write_bytes("café".encode("latin-1"))
    (data / "broken" / "unmarked.txt").write_bytes("café".encode("utf-16-le"))
    (data / "broken" / "long.txt").write_text("word " * 5_000)
    (data / "broken" / "gone.mp4").symlink_to("nowhere.mp4")
    (data / "broken" / "loop.mp4").symlink_to("loop.mp4")
    (data / "gone").symlink_to("nowhere", target_is_directory=True)


def _path(text: str, data: Path) -> str:
    """Return the path of a report, relative to the folder; one that is not UTF-8 is a URL."""
    if text.startswith("file://"):
        text = os.fsdecode(unquote_to_bytes(text.removeprefix("file://")))
    return str((data.parent / text).relative_to(data))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Path:
    """Return a folder with `Data`, which is embedded into a library with a name like a URL's."""
    folder = tmp_path_factory.mktemp("names")
    _make(folder / "Data", drawn)
    done = reelsrs(
        *("embed", "--exclude", "raw", "--list-skipped", "--json"),
        cwd=folder,
        REELSRS_MODEL="tiny",
        REELSRS_DATA_DIR=LIBRARY,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    (folder / "report.json").write_text(done.stdout)
    (folder / "errors.txt").write_text(done.stderr)
    return folder


def _run(place: Path, *arguments: str, encoding: str = "utf-8") -> Any:
    return run(*arguments, cwd=place, encoding=encoding, REELSRS_MODEL="tiny", REELSRS_DATA_DIR=LIBRARY)


def test_everything_good_is_in_and_everything_else_is_named(place: Path) -> None:
    report = json.loads((place / "report.json").read_text())
    assert report["embedded"] == len(GOOD)
    failed = {_path(one["path"], place / "Data"): one["reason"] for one in report["failures"]}
    assert failed.keys() == BAD.keys()
    assert all(BAD[name] in reason for name, reason in failed.items()), failed
    skipped = {_path(one["path"], place / "Data"): one["reason"] for one in report["skipped"]}
    assert skipped.keys() == {name for name, reason in SKIPPED.items() if reason}
    assert all(SKIPPED[name] in reason for name, reason in skipped.items()), skipped
    errors = (place / "errors.txt").read_text()
    assert errors.count("\nfailed ") + errors.startswith("failed ") == len(BAD)
    assert "evil%E2%80%AEgp4./x.mp4" in errors, "an override does not reach the terminal"


def test_rows_hold_readable_text_in_one_spelling(place: Path) -> None:
    assert [path.name for path in place.iterdir() if path.is_dir()].count(LIBRARY) == 1
    with closing(db.Database(sqlite_url(place / LIBRARY / "reelsrs.db"))) as database, database.read() as connection:
        columns = (db.videos.c.category, db.videos.c.filename, db.videos.c.caption, db.videos.c.status)
        rows = connection.execute(sa.select(*columns)).all()
    assert {row.status for row in rows} == {"ready"}
    assert sorted(row.category for row in rows) == sorted(["%E9t%E9", PERSIAN, *[CAFE] * 5, "abroad"])
    assert {row.filename for row in rows} >= {"%E9t%E9.mp4", f"{FAMILY}.mp4", "three lines.mp4", f"{'長' * 80}.mp4"}
    assert sorted(filter(None, (row.caption for row in rows))) == sorted(filter(None, GOOD.values()))


def test_a_second_run_reads_nothing_again_and_says_the_same(place: Path) -> None:
    done = _run(place, "embed", "--exclude", "raw")
    counts = f"0 embedded, 0 updated, 8 unchanged, 0 duplicates, {len(BAD)} failed, 8 skipped"
    assert (done.returncode, done.stdout.strip()) == (3, counts)
    assert "2 made by a system" in done.stderr
    assert "--list-skipped names them" in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_every_terminal_gets_every_table_and_every_error(place: Path, encoding: str) -> None:
    table = _run(place, "search", "words 犬", encoding=encoding)
    assert table.returncode == 0, table.stderr
    assert len(table.stdout.splitlines()) == 1 + len(GOOD), "one line for each hit"
    assert "[red]:dog:" in table.stdout, "neither markup nor an emoji"
    assert ("naïve" if encoding != "ascii" else "na\\xefve") in table.stdout
    answer = json.loads(_run(place, "search", "words", "--json", encoding=encoding).stdout)
    assert {hit["video"]["category"] for hit in answer["items"]} == {"%E9t%E9", PERSIAN, CAFE, "abroad"}
    for spelling in (CAFE, unicodedata.normalize("NFD", CAFE)):
        only = json.loads(_run(place, "search", "x", "--category", spelling, "--json", encoding=encoding).stdout)
        assert len(only["items"]) == 5
    byte = json.loads(_run(place, "search", "x", "--category", BYTES, "--json", encoding=encoding).stdout)
    like = _run(place, "similar", f"Data/{BYTES}/{BYTES}.mp4", "--json", encoding=encoding)
    assert len(byte["items"]) == 1
    assert byte["items"][0]["video"]["id"] not in {hit["video"]["id"] for hit in json.loads(like.stdout)["items"]}
    missing = _run(place, "similar", f"{BYTES}犬", encoding=encoding)
    assert (missing.returncode, "neither a file nor the id" in missing.stderr) == (1, True)
    for command in (("config",), ("duplicates",), ("doctor",), ("keys", "list"), ("embed", "--data-folder", "犬")):
        done = _run(place, *command, encoding=encoding)
        assert done.returncode in (0, 2), done.stderr


def test_exports_and_backups_keep_every_name(place: Path) -> None:
    out = f"aus {BYTES} ?#%"
    done = _run(place, "export", out)
    assert (done.returncode, done.stdout) == (0, f"{len(GOOD)} videos exported to aus %E9t%E9 ?#%\n"), done.stderr
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in (place / out).rglob("metadata.json")]
    assert {row["category"] for row in rows} == {"%E9t%E9", PERSIAN, CAFE, "abroad"}
    assert _run(place, "backup", "b.tar").returncode == 0
    again = f"again {BYTES} ?x#%25"
    restored = run("restore", "b.tar", cwd=place, REELSRS_DATA_DIR=again)
    assert (restored.returncode, restored.stdout.split(",")[0]) == (0, f"{len(GOOD)} videos"), restored.stderr
    with closing(db.Database(sqlite_url(place / again / "reelsrs.db"))) as database, database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(db.videos)).scalar() == len(GOOD)
    shutil.rmtree(place / again)
