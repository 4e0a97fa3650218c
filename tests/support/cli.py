"""The command line as a user has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import services
from tests.support.processes import CHILD_ENVIRONMENT, tied


def reelsrs(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    servers = services.environment(cwd / environment.get("REELSRS_DATA_DIR", "data"))
    return subprocess.run(
        tied(sys.executable, "-m", "service", *arguments),
        cwd=cwd,
        env={**CHILD_ENVIRONMENT, **servers, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
