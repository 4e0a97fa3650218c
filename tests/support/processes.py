"""Child processes: their environment, their descendants, and their end with ours."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from tests.support.paths import ROOT

CHILD_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("REELSRS_")},
    "PYTHONPATH": str(ROOT),  # what is tested is this checkout, whatever is installed
}
# util-linux's way to have the kernel kill a process when the thread that started it ends, however that ends.
_TIED = [found, "--pdeathsig", "KILL", "--"] if (found := shutil.which("setpriv")) else []


def tied(*command: str) -> list[str]:
    """The command of a process that does not outlive us. Start it from a thread that lives as long as it shall."""
    return [*_TIED, *command]


def ended(pid: int) -> bool:
    """Whether nothing of a child runs any more, threads apart from its first among it; it is not waited for."""
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True


def family(pid: int) -> set[int]:
    """A process and all that descend from it, where there is /proc."""
    found = {pid}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found
