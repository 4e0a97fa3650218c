"""Child processes: their environment, their descendants, and their end together with the test process."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from tests.support.paths import ROOT

CHILD_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("REELSRS_")},
    "PYTHONPATH": str(ROOT),  # Test this checkout, even if the package is installed.
}
# util-linux's setpriv: the kernel kills a process when the thread that started that process ends, for any reason.
_TIED = [found, "--pdeathsig", "KILL", "--"] if (found := shutil.which("setpriv")) else []


def tied(*command: str) -> list[str]:
    """Return a command whose process is killed when the thread that starts the process ends.

    Start the process from a thread that lives as long as the process should.
    """
    return [*_TIED, *command]


def ended(pid: int) -> bool:
    """Return whether a child process has ended with all its threads. The child is not reaped."""
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True


def family(pid: int) -> set[int]:
    """Return a process id and those of all its descendants; only the process itself without /proc."""
    found = {pid}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found
