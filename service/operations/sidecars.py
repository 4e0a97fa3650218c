"""Files beside a clip that say what it shows: `<stem>.json`, `<stem>.txt`, `<stem>.vtt` and `<stem>.srt`.

The caption is that of the first of these that has one; the others are ignored. Text is UTF-8, with or without a byte
order mark, or UTF-16 or UTF-32 with one. Anything else is an error, because a wrong guess would damage the caption.
"""

from __future__ import annotations

import codecs
import html
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from service.errors import InvalidInput
from service.models import MAX_CAPTION_CHARACTERS
from service.names import normalised, readable

ENDINGS = (".json", ".txt", ".vtt", ".srt")
"""Endings of sidecars; an earlier one goes first."""

_FIELDS = ("caption", "title", "category")
_MAX_BYTES = 8 << 20  # subtitles of a long film take some hundred kilobytes
_ENCODINGS = (  # UTF-32 first, because its mark begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_TIMING = re.compile(r"\s*(\d+:)?\d+:\d+([.,]\d+)?\s*-->")
_MARKUP = re.compile(r"</?[A-Za-z0-9.][^<>]*>|\{\\[^{}]*\}")  # <i>, <v Name>, <00:01.000>, {\an8}


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What the files beside a clip say; None where they say nothing, or there are none.

    `notes` holds pairs of path and reason: files that are ignored, and parts of files that are not used.
    """

    caption: str | None = None
    title: str | None = None
    category: str | None = None
    notes: tuple[tuple[Path, str], ...] = ()


def sidecar_paths(clip: Path) -> list[Path]:
    """Return the sidecars of a clip that exist, the one to use first; links that lead nowhere are included."""
    spelled = (clip.with_suffix(ending) for lower in ENDINGS for ending in (lower, lower.upper()))
    found: list[Path] = []
    for path in spelled:
        # A file system that ignores case has one file under both spellings.
        if (path.is_file() or (path.is_symlink() and not path.exists())) and not _is_one_of(path, found):
            found.append(path)
    return found


def _is_one_of(path: Path, found: list[Path]) -> bool:
    return path.exists() and any(path.samefile(other) for other in found if other.exists())


def read_sidecar(clip: Path) -> Sidecar:
    """Read the sidecars of a clip. The caption is that of the first one that has a caption.

    Raises InvalidInput, which names the file, if it cannot be read, is not text, or not what its ending says.
    """
    read = Sidecar()
    for path in sidecar_paths(clip):
        if read.caption:
            read = replace(read, notes=(*read.notes, (path, "ignored: another file beside the clip has the caption")))
            continue
        text = _read_text(path)
        ending = path.suffix.lower()
        if ending == ".json":
            read = _from_json(path, text)
        elif ending == ".txt":
            read = replace(read, caption=text.strip())
        else:
            caption, whole = _spoken(path, text)
            cut = () if whole else ((path, f"only the first {MAX_CAPTION_CHARACTERS:,} characters are the caption"),)
            read = replace(read, caption=caption, notes=(*read.notes, *cut))
    return read


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise _wrong(path, f"is larger than {_MAX_BYTES >> 20} MiB")
    mark, encoding = next(((mark, name) for mark, name in _ENCODINGS if data.startswith(mark)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # also UTF-16 without a mark, which is often valid UTF-8
        raise _wrong(path, "is not text in UTF-8, or in UTF-16 with a byte order mark; save it as UTF-8")
    return text.lstrip("\ufeff")  # two files with marks, joined


def _from_json(path: Path, text: str) -> Sidecar:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"is not JSON: {error}") from None
    if not isinstance(content, dict):  # of another program
        return Sidecar(notes=((path, "ignored: it holds no JSON object"),))
    for name in _FIELDS:
        if not isinstance(content.get(name), str | None):
            raise _wrong(path, f"must have a string as {name!r}")
    others = ", ".join(repr(name) for name in content if name not in _FIELDS)
    notes = ((path, f"fields that are not used: {others}"),) if others else ()
    caption, title, category = (content.get(name) for name in _FIELDS)
    return Sidecar((caption or "").strip() or None, title, category, notes)


def _spoken(path: Path, text: str) -> tuple[str, bool]:
    """Return the words of subtitles without numbers, times and markup, and whether these are all words.

    Only whole cues are kept, at most MAX_CAPTION_CHARACTERS. A line that the next cue repeats, as live captions do, is
    kept once.
    """
    lines: list[str] = []
    characters, timed = 0, False
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        rows = block.split("\n")
        times = [number for number, row in enumerate(rows) if _TIMING.match(row)]
        if not times:  # the header, a note, a style
            continue
        timed = True
        # Some programs leave no empty line between cues: then a number stands before the times.
        numbers = {number - 1 for number in times if rows[number - 1].strip().isdigit()}
        kept = [row for n, row in enumerate(rows) if n > times[0] and n not in times and n not in numbers]
        # Markup first: what an entity such as &lt; spells out is text, not markup.
        said = [line for row in kept if (line := html.unescape(_MARKUP.sub("", row)).strip())]
        said = [line for line in said if line not in lines[-2:]]
        characters += sum(len(normalised(line)) + 1 for line in said)
        if characters > MAX_CAPTION_CHARACTERS:
            return "\n".join(lines), False
        lines += said
    if not timed and text.strip():
        raise _wrong(path, "has no line with times like 00:00:01.000 --> 00:00:02.000")
    return "\n".join(lines), True


def _wrong(path: Path, reason: str) -> InvalidInput:
    return InvalidInput("sidecar", f"{readable(path.name)} {reason}")
