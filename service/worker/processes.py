"""Processes that end with the one that started them, and give way to it."""

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

    Its standard input is a pipe from here: when this process ends, however it ends, the pipe closes, and what runs
    `stop_with_stdin` stops.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "service", *command],
        env={**os.environ, **settings.environ()},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a process to stop, and wait until it has; kill it when it takes longer than `seconds`."""
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def owner_of(pid: int) -> str:
    """The name under which the worker process `pid` of this machine holds its jobs."""
    return f"{socket.gethostname()}:{pid}"


def stop_with_stdin(stop: threading.Event) -> None:
    """Set `stop` when standard input ends; end the process if the work in hand takes too long after that."""

    def wait() -> None:
        # Not sys.stdin: its lock would be held for ever and block the interpreter's exit.
        while os.read(0, 1024):
            pass
        stop.set()
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def lower_priority() -> None:
    """Let searches go first, where the system knows priorities."""
    if hasattr(os, "nice"):
        os.nice(10)
