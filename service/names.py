"""Names that people and file systems give, as Unicode text that is safe to store, to show and to compare.

A file system may allow any bytes in a name. Python decodes those that are not text to lone surrogates, which neither a
database nor JSON accepts. For people such a byte is written as %E9 (`readable`, `shown`). Where the file must be found
again, the whole path becomes a file URL (`path_text`).
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

_PERCENT = "reelsrs-percent"
_FILE_URL = "file://"

# Characters of the category Cf that show nothing and can make a name look like another one, or reorder the text around
# it. The others belong to words: joiners, Arabic and Indic number signs, the tags in emoji flags.
_DECEPTIVE = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0001]"
)
_SPECIAL_IN_URL = re.compile("[%?#\x00-\x1f\x7f\ud800-\udfff]")


def _percent(error: UnicodeError) -> tuple[str, int]:
    """Error handler of a decoder: write every byte that cannot be decoded as a percent sign and two hex digits."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"%{byte:02X}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_PERCENT, _percent)


def normalised(text: str) -> str:
    """Return the text in NFC, in which equal names have equal characters, however they were typed."""
    return unicodedata.normalize("NFC", text)


def readable(name: str | os.PathLike[str]) -> str:
    """Return a name or path of the file system as Unicode text; bytes that are not UTF-8 become %E9 and the like."""
    try:  # by way of the bytes, because the system's encoding may be another one than UTF-8
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # not of the file system: a character that its encoding lacks
        encoded = os.fspath(name).encode("utf-8", "surrogatepass")
    return encoded.decode("utf-8", _PERCENT)


def shown(name: str | os.PathLike[str]) -> str:
    """Return a name or path for a terminal: like `readable`, with control characters written as %0A and the like."""
    return "".join(quote(c) if _is_control(c) else c for c in readable(name))


def path_text(path: Path) -> str:
    """Return a path as Unicode text from which `path_from_text` gets the same path back.

    A path that is not UTF-8 becomes a file URL, which is absolute. No path begins like one, because it has two slashes.
    """
    encoded = os.fsencode(path)
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError:
        return _FILE_URL + quote_from_bytes(os.fsencode(path.absolute()))


def path_from_text(text: str) -> Path:
    """Return the path that `path_text` wrote as text."""
    if text.startswith(_FILE_URL):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix(_FILE_URL))))
    return Path(os.fsdecode(text.encode()))


def sqlite_url(file: Path) -> str:
    """Return the database URL of an SQLite file, whatever characters its path has.

    `database.dialects.parse_url` gets the same path back.
    """
    return "sqlite:///" + _SPECIAL_IN_URL.sub(lambda found: quote_from_bytes(os.fsencode(found[0])), str(file))


def has_controls(text: str) -> bool:
    """Return whether a name has characters that show nothing: controls, line separators, and bidirectional overrides.

    Joiners are part of words and emoji, and are not counted. Lone surrogates are, because they are not text.
    """
    return any(_is_control(character) for character in text)


def one_line(text: str) -> str:
    """Return the text in NFC on one line, without the characters that `has_controls` looks for."""
    visible = "".join(" " if _is_control(c) else c for c in _DECEPTIVE.sub("", normalised(text)))
    return " ".join(visible.split())


def _is_control(character: str) -> bool:
    # Unassigned characters pass: emoji and scripts of a later version of Unicode.
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return True
    return _DECEPTIVE.match(character) is not None or ord(character) & 0xFFFE == 0xFFFE
