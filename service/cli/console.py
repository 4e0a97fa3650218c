"""Console output of the commands: data on stdout, messages and progress on stderr.

Text of people can have any character, and a terminal or a file can have any encoding: what an encoding lacks is written
as an escape sequence, and nothing fails.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from service.names import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# A fixed width, so that tables keep their columns in a file or a pipe. A name like :dog: is no emoji.
out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, emoji=False)


def accept_every_character() -> None:
    """Let stdout and stderr write what their encoding lacks as an escape sequence, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def cell(text: str) -> Text:
    """Return text of people as a cell of a table: on one line, without control characters, and never as markup."""
    return Text(one_line(text))


def plain(text: str) -> str:
    """Escape the brackets in a text, which a message would interpret as styles."""
    from rich.markup import escape

    return escape(text)


class Bar:
    """A progress bar. Its methods serve as progress callbacks."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, name: str = "") -> None:
        """Count one more item as done, and show its `name`."""
        task = self._progress.tasks[0]
        speed = task.finished_speed or task.speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._progress.update(self._task, advance=1, rate=rate, name=one_line(name)[:40])

    def count(self, done: int, total: int) -> None:
        """Show that `done` of `total` items are done; a `total` of 0 is unknown."""
        self._progress.update(self._task, completed=done, total=total or None)

    def share(self, done: float) -> None:
        """Show the share that is done, 0 to 1."""
        self._progress.update(self._task, completed=done)


@contextmanager
def progress(what: str, total: int | None = None, *, share: bool = False) -> Iterator[Bar]:
    """Show a progress bar labelled `what` on a terminal, and nothing elsewhere.

    The bar shows items out of `total` with their rate, or with `share` a share from 0 to 1.
    """
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn() if share else rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn() if share else rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[name]}", markup=False, style="dim"),
    )
    with rich.Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bars:
        yield Bar(bars, bars.add_task(what, total=1.0 if share else total, rate="", name=""))
