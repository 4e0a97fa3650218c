"""Tests of sidecars: their order, encodings and formats, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.errors import InvalidInput
from service.operations.sidecars import read_sidecar

WORDS = "ein Hund am Strand, 犬, café"
SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Good</i> morning, {\\an8}Jos\u00e9.

2
00:00:03,000 --> 00:00:04,000 X1:10 X2:20
- Hello!
- 1984 &lt;sic&gt;
3
00:00:05,000 --> 00:00:06,000
Bye.
"""
VTT = """WEBVTT - some title
Kind: captions

NOTE a note
of two lines

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.000 align:start
<v Ann>live<00:00:01.500><c> words</c>

00:02.000 --> 00:03.000
live words
and more &amp; more
"""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Return the path of a clip in an empty folder."""
    return tmp_path / "clip.one.mp4"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with mark", "utf-16-be with mark"]
)
@pytest.mark.parametrize("ending", [".txt", ".TXT", ".srt", ".vtt", ".json"])
def test_every_marked_encoding_is_read(clip: Path, encoding: str, ending: str) -> None:
    content = {
        ".json": json.dumps({"caption": WORDS}, ensure_ascii=False),
        ".srt": f"1\r\n00:00:01,000 --> 00:00:02,000\r\n{WORDS}\r\n",
        ".vtt": f"WEBVTT\n\n00:01.000 --> 00:02.000\n{WORDS}\n",
    }.get(ending, f"{WORDS}\n")
    name, _, mark = encoding.partition(" with ")
    clip.with_suffix(ending).write_bytes(("\ufeff".encode(name) if mark else b"") + content.encode(name))
    assert read_sidecar(clip).caption == WORDS


@pytest.mark.parametrize(
    ("ending", "data", "said"),
    [
        (".txt", "café".encode("latin-1"), "is not text in UTF-8"),
        (".txt", "plain".encode("utf-16-le"), "is not text in UTF-8"),
        (".txt", b"\xff\xfea", "is not text in UTF-8"),
        (".txt", bytes(range(256)), "is not text in UTF-8"),
        (".txt", b"a" * ((8 << 20) + 1), "larger than 8 MiB"),
        (".json", b'{"caption": ', "is not JSON"),
        (".json", b'{"caption": 7}', "'caption'"),
        (".json", b"[" * 100_000, "is not JSON"),
        (".srt", b"just words", "no line with times"),
        (".vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\n\xe9".encode("latin-1"), "is not text"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_guessed(clip: Path, ending: str, data: bytes, said: str) -> None:
    clip.with_suffix(ending).write_bytes(data)
    with pytest.raises(InvalidInput, match=f"clip.one{ending} .*{said}"):
        read_sidecar(clip)


def test_the_words_of_subtitles_are_the_caption(clip: Path) -> None:
    clip.with_suffix(".srt").write_text(SRT, encoding="utf-8")
    assert read_sidecar(clip).caption == "Good morning, José.\n- Hello!\n- 1984 <sic>\nBye."
    clip.with_suffix(".vtt").write_text(VTT, encoding="utf-8")
    read = read_sidecar(clip)
    assert read.caption == "live words\nand more & more"
    assert [(path.name, "ignored" in reason) for path, reason in read.notes] == [("clip.one.srt", True)]


def test_long_subtitles_are_cut_after_a_whole_cue_and_it_is_said(clip: Path) -> None:
    cue = "{0}\n00:{1:02}:{2:02},000 --> 00:59:59,000\nline {0} " + "word " * 20
    text = "\n\n".join(cue.format(number, number // 60, number % 60) for number in range(1, 301))
    clip.with_suffix(".srt").write_text(text, encoding="utf-8")
    read = read_sidecar(clip)
    assert read.caption is not None
    assert 9_800 < len(read.caption) <= 10_000
    assert read.caption.endswith("word")
    assert "only the first 10,000 characters" in read.notes[0][1]


def test_the_first_with_a_caption_counts_and_the_others_are_named(clip: Path) -> None:
    clip.with_suffix(".srt").write_text(SRT, encoding="utf-8")
    clip.with_suffix(".txt").write_text("of the text file", encoding="utf-8")
    clip.with_suffix(".json").write_text('{"title": "A title", "camera": 7}', encoding="utf-8")
    read = read_sidecar(clip)
    assert (read.caption, read.title, read.category) == ("of the text file", "A title", None)
    assert [path.name for path, _ in read.notes] == ["clip.one.json", "clip.one.srt"]
    assert "'camera'" in read.notes[0][1]
    clip.with_suffix(".json").write_text('{"caption": "of the JSON", "category": "dogs"}', encoding="utf-8")
    read = read_sidecar(clip)
    assert (read.caption, read.title, read.category) == ("of the JSON", None, "dogs")
    assert [path.name for path, _ in read.notes] == ["clip.one.txt", "clip.one.srt"]
    clip.with_suffix(".json").write_text("[1, 2]", encoding="utf-8")  # of another program
    assert read_sidecar(clip).caption == "of the text file"


def test_a_link_that_leads_nowhere_is_no_missing_caption(clip: Path) -> None:
    assert read_sidecar(clip).caption is None
    clip.with_suffix(".txt").symlink_to("gone.txt")
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        read_sidecar(clip)
