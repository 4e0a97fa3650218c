"""Tests of names: bytes that are no text, scripts and their joiners, spellings, and paths in URLs."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from service.database.dialects import parse_url
from service.errors import ConfigurationError, InvalidInput
from service.models import clean_caption, clean_category, clean_filename, clean_title
from service.names import path_from_text, path_text, readable, shown, sqlite_url

LATIN_1 = os.fsdecode(b"/data/\xe9t\xe9/a%E9\\\xff.mp4")
PATHS = [
    "/a/b.mp4",
    "/\u00e9t\u00e9/日本.mp4",
    "/cafe\u0301/x",
    "/100% %25/a#b?c",
    "/line\nbreak/tab\t",
    LATIN_1,
    "rel/a.mp4",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_kept_as_text_without_loss(path: str) -> None:
    text = path_text(Path(path))
    json.dumps(text, ensure_ascii=False).encode()  # is Unicode text
    assert path_from_text(text) == Path(path)
    assert text == path or not path.isprintable(), "rows of earlier versions have the path as it is"


def test_two_paths_never_share_a_text() -> None:
    byte, spelled = os.fsdecode(b"/a/\xe9t\xe9"), "/a/%E9t%E9"
    assert readable(byte) == spelled, "for people"
    assert path_text(Path(byte)) != path_text(Path(spelled)), "for programs"


def test_names_are_readable_and_safe_on_a_terminal() -> None:
    assert readable("日本 ünï.mp4") == "日本 ünï.mp4"
    assert readable(os.fsdecode(b"\xff\xfe.mp4")) == "%FF%FE.mp4"
    assert shown("a\x1b[31mred\nb\u202e.mp4") == "a%1B[31mred%0Ab%E2%80%AE.mp4"
    assert shown("دست\u200cدوز") == "دست\u200cدوز"


@pytest.mark.parametrize(
    "path", [*PATHS, os.fsdecode(b"\xe9t\xe9/lib"), "lib?1", "a#b", "100%25 data", "ünï 日本", "a:b@c/d"]
)
def test_the_url_of_an_sqlite_file_leads_to_it(path: str) -> None:
    url = parse_url(sqlite_url(Path(path)))
    assert (url.database, dict(url.query), url.get_backend_name()) == (path, {}, "sqlite")


def test_a_question_mark_in_an_sqlite_url_is_said_and_no_other_file_is_opened() -> None:
    for url in ("sqlite:///lib?1/reelsrs.db", "sqlite:///lib?mode=1", "sqlite:///x.db?"):
        with pytest.raises(ConfigurationError, match="%3F"):
            parse_url(url)


def test_urls_of_people_are_read_as_before() -> None:
    assert sqlite_url(Path("data/reelsrs.db")) == "sqlite:///data/reelsrs.db"
    assert parse_url("sqlite:////srv/x.db?timeout=3").query == {"timeout": "3"}
    server = parse_url("postgresql+psycopg://me:p%40ss@host:5433/name")
    assert (server.password, server.host, server.port, server.database) == ("p@ss", "host", 5433, "name")
    assert parse_url(server) is server


@pytest.mark.parametrize(
    "name",
    [
        "دست\u200cدوز",  # Persian: a joiner inside a word
        "क्\u200dष",  # Hindi
        "family \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England, of tags
        "שלום, мир, 動物, ᠮᠣᠩᠭᠣᠯ\u180e",
        "\u0600123",  # an Arabic number sign
        "\U0001fae8 \U0001fadc",  # emoji that this Python's Unicode may not know yet
    ],
)
def test_names_of_every_script_pass(name: str) -> None:
    assert clean_category(name) == name
    assert clean_title(name) == name
    assert clean_filename(f"{name}.mp4") == f"{name}.mp4"


@pytest.mark.parametrize("sign", ["\u202e", "\u2066", "\u200f", "\x07", "\x1b", "\u2028", "\u200b", "\ufeff", "\udce9"])
def test_controls_and_overrides_are_refused_or_left_out(sign: str) -> None:
    with pytest.raises(InvalidInput, match="control"):
        clean_category(f"a{sign}b")
    assert clean_title(f"a{sign}b") in ("ab", "a b")


@pytest.mark.parametrize("clean", [clean_category, clean_title, clean_caption, clean_filename])
def test_one_spelling_of_a_name(clean: object) -> None:
    for name in ("Café", "Ångström", "한국어", "Tiếng Việt"):
        assert clean(unicodedata.normalize("NFD", name)) == unicodedata.normalize("NFC", name)  # type: ignore[operator]


def test_half_a_character_is_no_caption() -> None:
    with pytest.raises(InvalidInput, match="lone surrogate"):
        clean_caption("half \ud83d")
