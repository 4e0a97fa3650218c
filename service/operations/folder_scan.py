"""Find the clips in a folder `<Category>/<clip>`, and everything in it that is left out, with the reason.

Links are followed after everything else, so that a clip has the category of its own folder and not that of a link to
it. A folder or file that was found already is not visited again, so that links cannot form a loop.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import InvalidInput
from service.media import SUFFIXES
from service.names import normalised, readable
from service.operations.sidecars import ENDINGS

# Lower case. Folders that systems and storage devices make for themselves: thumbnails, deleted files, snapshots.
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot", "~snapshot"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "found.000", "__macosx"),
    }
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})


@dataclass(frozen=True, slots=True)
class Entry:
    """Clip found in the folder. `category` is the name of the first folder, readable and in NFC."""

    path: Path
    category: str


@dataclass
class Found:
    """Content of a folder: `entries` are its clips, sorted by path.

    `skipped` and `failures` hold pairs of path and reason. What is skipped is no clip or was left out on purpose;
    failures could not be read, such as links that lead nowhere.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)


def scan(folder: Path) -> list[Entry]:
    """Return the clips in a folder; see `find`."""
    return find(folder).entries


def find(folder: Path, exclude: Iterable[str] = ()) -> Found:
    """Return the clips below `folder/<Category>/`, and everything that is left out.

    Args:
        folder: The folder of categories.
        exclude: Patterns of paths to leave out, relative to the folder. `*` and `?` stand for characters of one name,
            `**` for any folders. A pattern without a slash fits a name at any depth. A folder is left out with all
            that it holds.

    Raises:
        InvalidInput: The folder does not exist or cannot be read, or holds no clips.
    """
    if not folder.is_dir():
        raise InvalidInput("data_folder", f"folder {readable(folder)} does not exist")
    found = _Search(folder, [_pattern(one) for one in exclude]).run()
    if not found.entries:
        reasons = "".join(f"; {readable(path)}: {reason}" for path, reason in found.failures[:3])
        raise InvalidInput("data_folder", f"no clips found below {readable(folder)}/<Category>/{reasons}")
    return found


class _Search:
    """One walk through a folder."""

    def __init__(self, folder: Path, exclude: list[re.Pattern[str]]) -> None:
        self._folder = folder
        self._exclude = exclude
        self._found = Found()
        self._visited: dict[tuple[int, int], Path] = {}  # device and inode, of folders and of clips
        self._links: list[Path] = []
        self._stems: set[Path] = set()  # clips without the ending of their names, which sidecars share

    def run(self) -> Found:
        self._visit(self._folder)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(link)
        self._found.entries.sort(key=lambda entry: entry.path)
        for pairs in (self._found.skipped, self._found.failures):
            pairs.sort()
        return self._found

    def _visit(self, top: Path) -> None:
        """Visit a folder and the folders in it. Links are put off."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                information = folder.stat()
                first = self._visited.setdefault((information.st_dev, information.st_ino), folder)
                if first is not folder:
                    self._skip(folder, f"linked again: the same folder as {readable(first)}")
                    continue
                with os.scandir(folder) as listing:
                    names = sorted(entry.name for entry in listing)
            except OSError as error:
                self._fail(folder, error)
                continue
            paths = [folder / name for name in names]
            self._stems.update(path.with_suffix("") for path in paths if path.suffix.lower() in SUFFIXES)
            for path in paths:
                if (reason := self._left_out(path)) is not None:
                    self._skip(path, reason)
                    continue
                try:
                    mode = path.lstat().st_mode
                except OSError as error:
                    self._fail(path, error)
                    continue
                if stat.S_ISLNK(mode):
                    self._links.append(path)
                elif stat.S_ISDIR(mode):
                    waiting.append(path)
                else:
                    self._take(path, mode)

    def _follow(self, link: Path) -> None:
        try:
            mode = link.stat().st_mode
        except FileNotFoundError:
            self._found.failures.append((link, f"a link that leads nowhere: {readable(link.readlink())}"))
        except OSError as error:  # a loop of links, or no permission
            self._fail(link, error)
        else:
            if stat.S_ISDIR(mode):
                self._visit(link)
            else:
                self._take(link, mode)

    def _left_out(self, path: Path) -> str | None:
        """Return why a path is left out by its name, or None."""
        name = path.name
        if name.startswith("."):
            return "hidden"
        if name.lower() in _SYSTEM_FOLDERS or name.lower() in _SYSTEM_FILES:
            return "made by a system"
        relative = normalised(readable(path.relative_to(self._folder).as_posix()))
        return "excluded" if any(one.fullmatch(relative) for one in self._exclude) else None

    def _take(self, path: Path, mode: int) -> None:
        """Take a file as a clip, or note why it is none."""
        relative = path.relative_to(self._folder)
        if path.suffix.lower() not in SUFFIXES:
            if path.suffix.lower() not in ENDINGS or path.with_suffix("") not in self._stems:
                self._skip(path, "not a clip, by the ending of its name")
        elif len(relative.parts) < 2:
            self._skip(path, "not in the folder of a category")
        elif not stat.S_ISREG(mode):
            self._skip(path, "not a regular file")
        else:
            information = path.stat()
            # Two names of one file (hard links) are left to the import, which reports them as duplicates.
            first = self._visited.setdefault((information.st_dev, information.st_ino), path)
            if first is not path and path.is_symlink():
                self._skip(path, f"linked again: the same file as {readable(first)}")
            else:
                self._found.entries.append(Entry(path, normalised(readable(relative.parts[0]))))

    def _skip(self, path: Path, reason: str) -> None:
        self._found.skipped.append((path, reason))

    def _fail(self, path: Path, error: OSError) -> None:
        self._found.failures.append((path, f"cannot be read: {error.strerror}"))


def _pattern(glob: str) -> re.Pattern[str]:
    """Return a pattern of `find` as a regular expression that a whole relative path must match."""
    text = normalised(readable(glob)).rstrip("/")
    parts = text.strip("/").split("/")
    inner = "".join("(?:.*/)?" if part == "**" else f"{_name_pattern(part)}/" for part in parts[:-1])
    expression = inner + (".+" if parts[-1] == "**" else _name_pattern(parts[-1]))
    try:
        return re.compile(expression if "/" in text else f"(?:.*/)?{expression}", re.DOTALL)
    except re.error:
        raise InvalidInput("exclude", f"{text} is not a pattern: check its brackets") from None


def _name_pattern(glob: str) -> str:
    """Return a pattern of one name as a regular expression. `fnmatch` would let `*` match slashes, too."""
    signs = {"*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"([*?]|\[!?\]?[^\]]*\])", glob)
    return "".join(
        signs.get(part) or (_one_of(part[1:-1]) if part.startswith("[") and len(part) > 2 else re.escape(part))
        for part in parts
        if part
    )


def _one_of(characters: str) -> str:
    """Return the regular expression of a bracket: one of these characters, or with ! first none of them."""
    escaped = characters.removeprefix("!").replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
    escaped = escaped.replace("^", r"\^")
    return f"[^/{escaped}]" if characters.startswith("!") else f"[{escaped}]"
