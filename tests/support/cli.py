"""Run the command line as a user does: in this process, or in a separate process if a test needs one."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import structlog

from service import cli
from tests.support import services
from tests.support.processes import CHILD_ENVIRONMENT, tied


def reelsrs(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end in a separate process; return its exit status and output."""
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


def run(*arguments: str, cwd: Path, encoding: str = "utf-8", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end in this process; return its exit status and output.

    The command gets its own environment variables, working directory, output streams (in this encoding) and logging.
    All are restored afterwards.
    """
    servers = services.environment(cwd / environment.get("REELSRS_DATA_DIR", "data"))
    before, handlers = dict(os.environ), logging.getLogger().handlers[:]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    try:
        os.environ.clear()
        os.environ.update({**CHILD_ENVIRONMENT, **servers, **environment})
        logging.getLogger().handlers = []  # A command configures logging only if no handler is installed.
        # Do not let a command lower the priority of this process: the tests that follow would be slow.
        with chdir(cwd), redirect_stdout(out), redirect_stderr(err), patch("service.worker.processes.lower_priority"):
            status = cli.status(list(arguments))
    finally:
        os.environ.clear()
        os.environ.update(before)
        logging.getLogger().handlers = handlers
        structlog.reset_defaults()
    said, told = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, status, said, told)
