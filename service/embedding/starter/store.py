"""Where the starter model is kept: made once, checked at every load, shared by the libraries of a user.

A finished model is a folder with a manifest of checksums. It is written aside and renamed. The processes that need it
at the same time make it once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from filelock import FileLock

from service.embedding.starter import inputs
from service.errors import ConfigurationError, ModelUnavailable

log = structlog.get_logger(__name__)

ProgressCallback = Callable[[float], None]
"""Progress callback: receives the share done, 0 to 1."""

_MANIFEST = "manifest.json"
_NOT_FOR_INT8 = (
    "REELSRS_PRECISION: the model starter does not keep its meaning in 8-bit integers; set REELSRS_PRECISION=float32"
)


def check_precision(precision: str) -> None:
    """Raise ConfigurationError if the model cannot be used in this precision.

    In 8-bit integers, the cosine of its vectors to the float32 ones falls to 0.84. At least 0.99 is required.
    """
    if precision == "int8":
        raise ConfigurationError(_NOT_FOR_INT8)


def check_available(library_folder: Path | None = None) -> None:
    """Raise ConfigurationError if the model is neither made nor can be made, because packages are missing."""
    if find(library_folder) is None:
        inputs.require_packages()


def made(library_folder: Path | None = None, on_progress: ProgressCallback = lambda _: None) -> Path:
    """Return the folder of the model, in open_clip's format; make the model if there is none or if it is damaged.

    Args:
        library_folder: folder in which the model is kept if the user's cache cannot be written; None for no such
            folder.
        on_progress: called while the model is made.

    Raises:
        ConfigurationError: if the packages that the model is made from are not installed.
        ModelUnavailable: if they have other contents than expected, or if no folder can be written.
    """
    found = find(library_folder)
    if found is not None:
        return found
    inputs.require_packages()
    reasons = []
    for folder in _folders(library_folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not _is_intact(folder):  # another process may have made it meanwhile
                    _make(folder, on_progress)
        except OSError as error:
            reasons.append(f"{folder.parent}: {error.strerror or error}")
        else:
            return folder
    raise ModelUnavailable(
        f"the model starter cannot be stored in any folder ({'; '.join(reasons) or 'none is known'}); "
        "set XDG_CACHE_HOME to a folder that can be written and has 300 MB free"
    )


def _folders(library_folder: Path | None) -> list[Path]:
    """Return where the model may be, the first choice first."""
    return [parent / f"starter-{inputs.identity()[:16]}" for parent in (_user_cache(), library_folder) if parent]


def find(library_folder: Path | None = None) -> Path | None:
    """Return the folder of the finished model; None if there is none, or only a damaged one."""
    return next((folder for folder in _folders(library_folder) if _is_intact(folder)), None)


def _user_cache() -> Path | None:
    """Return the folder of ReelsRS in the user's cache; None if the user has no home folder."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(configured) if Path(configured).is_absolute() else Path("~/.cache").expanduser()
    return cache / "reelsrs" if cache.is_absolute() else None


def _make(folder: Path, on_progress: ProgressCallback) -> None:
    """Make the model in a folder beside `folder`, and rename it. Call with the lock held."""
    from service.embedding.starter.recipe import build

    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        aside = Path(scratch) / folder.name
        aside.mkdir()
        if folder.exists():
            log.warning("starter model: damaged; building it again", folder=str(folder))
        log.warning("starter model: building", folder=str(folder))
        inputs.check()
        build(aside, on_progress)
        sums = {file.name: inputs.digest_of(file) for file in sorted(aside.iterdir())}
        (aside / _MANIFEST).write_text(json.dumps({"identity": inputs.identity(), "sha256": sums}, indent=2))
        for file in aside.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    log.info("starter model: built", folder=str(folder), seconds=round(time.monotonic() - started, 1))


def _is_intact(folder: Path) -> bool:
    """Return whether the folder holds a finished model whose checksums are right."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        sums = manifest["sha256"]
        is_whole = manifest["identity"] == inputs.identity() and len(sums) > 0
        return is_whole and all(inputs.digest_of(folder / file) == expected for file, expected in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
