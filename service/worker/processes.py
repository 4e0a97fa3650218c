"""Child processes that end with their parent process, and run at a lower priority."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

from service.config import Settings


def spawn(settings: Settings, *command: str) -> subprocess.Popen[bytes]:
    """Start `reelsrs COMMAND...` with these settings, as a process that ends with this one.

    Its standard input is a pipe from this process. When this process ends, for whatever reason, the pipe closes. A
    child that called `stop_when_stdin_closes` then stops.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "service", *command],
        env={**os.environ, **settings.environ()},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def terminate(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a process to stop, and wait until it has. Kill it if it takes longer than `seconds`."""
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def owner_of(pid: int) -> str:
    """Return how the names start under which the worker process `pid` of this machine holds its jobs."""
    return f"{socket.gethostname()}:{pid}"


def stop_when_stdin_closes(stop: threading.Event) -> None:
    """Set `stop` when standard input ends.

    If this process still runs 10 seconds later, it exits with status 1.
    """

    def wait() -> None:
        # Not sys.stdin: its lock would stay held and block the interpreter's exit.
        while os.read(0, 1024):
            pass
        stop.set()
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def lower_priority() -> None:
    """Lower the priority of this process, so that searches go first. No effect if the system has no `nice`."""
    if hasattr(os, "nice"):
        os.nice(10)
