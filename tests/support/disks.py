"""Mount, fill and break file systems for tests of disk faults."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import services


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        services.missing(f"nothing may be mounted here: mount {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    folder.mkdir()
    mount(*arguments, str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Write a file that fills the file system except for `leave` bytes; return its path."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size >= 512:
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                size //= 2
    if leave:
        os.truncate(ballast, ballast.stat().st_size - leave)
    return ballast
