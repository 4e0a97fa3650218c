"""Decode clips in child processes.

A decoder that crashes, hangs or uses too much memory must cost one video and nothing else. `Decoder` therefore talks to
child processes over a pipe with a time limit, and replaces a child that dies. Only JSON, raw bytes and open files cross
the pipe. A child receives the one file to read, or requests byte ranges if the clip is not on this machine. `sandbox`
denies the child access to any other file.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import structlog

from service import system_errors
from service.errors import Overloaded, ReelsError, Unavailable, Undecodable
from service.media.child import RANGE_BYTES, from_wire, send_file, serve
from service.media.colours import Pixels
from service.media.container import Limits
from service.media.fingerprint import FINGERPRINT_SIDE, Fingerprint
from service.media.sampling import Sample
from service.models import Blob, ImageSpec, Probe, Sampling

log = structlog.get_logger(__name__)
_START_SECONDS = 60
_END_SECONDS = 5  # for a process to end after its pipe has closed
_BUSY_SECONDS = 10  # after which the client may try again
_PROBE_SECONDS = 8.0  # hundreds of times the usual duration; a client waits for the response to an upload


class Decoder:
    """Pool of `processes` child processes that decode clips; the processes share the cores.

    Safe to call from `processes` threads at once. `keyframes` selects the keyframes nearest to the sampled frames:
    faster for long clips, but not exact.

    Raises:
        Undecodable: If the clip is at fault, for example if decoding crashes or takes too long.
        InvalidInput: If the clip is longer or larger than the limits.
        Overloaded: If time ran out before the decoder got much CPU time, because the machine was busy.
        Unavailable: If no child process can be started, or the machine lacks memory or open files.
        InternalError: If the decoder's own code failed.
    """

    def __init__(self, limits: Limits, processes: int = 1, *, keyframes: bool = False) -> None:
        self.processes = processes
        self.unsandboxed_reason: str | None = None
        """Why the last clip was decoded without a filter of system calls; None if there was a filter."""
        self._keyframes = keyframes
        self._threads = max(1, (os.cpu_count() or 1) // processes)
        self._limits = limits
        # Last in, first out: requests in sequence use one process, and no other has to start.
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(_Child())

    def probe(self, path: Path) -> Probe:
        """Return the properties of a clip, after decoding its first frame, in at most 8 seconds."""
        header, _ = self._ask(path, {"do": "probe"}, min(_PROBE_SECONDS, self._limits.timeout_seconds))
        return Probe(**header["probe"])

    def sample(self, clip: Path | Blob, sampling: Sampling, image_spec: ImageSpec) -> Sample:
        """Sample the frames that `sampling` selects, at the size that `image_spec` gives.

        Return fewer frames if the clip has fewer.
        """
        request = {
            "do": "sample",
            "sampling": asdict(sampling),
            "picture": asdict(image_spec),
            "keyframes": self._keyframes,
        }
        header, blobs = self._ask(clip, request, self._limits.timeout_seconds)
        pixels = np.frombuffer(bytearray(blobs[0]), dtype=np.uint8)  # a bytearray, because torch needs writable memory
        return Sample(
            probe=Probe(**header["probe"]),
            times=np.array(header["times"], dtype=np.float64),
            pixels=pixels.reshape(-1, image_spec.height, image_spec.width, 3),
            thumbnails=tuple(blobs[1:]),
        )

    def image(self, path: Path, image_spec: ImageSpec) -> Pixels:
        """Read an image file; return (H, W, 3) uint8 RGB at the size that `image_spec` gives.

        Decoding takes at most 8 seconds. Raises Undecodable, InvalidInput.
        """
        request = {"do": "picture", "picture": asdict(image_spec)}
        _, blobs = self._ask(path, request, min(_PROBE_SECONDS, self._limits.timeout_seconds))
        pixels = np.frombuffer(bytearray(blobs[0]), dtype=np.uint8)
        return pixels.reshape(image_spec.height, image_spec.width, 3)

    def fingerprint(self, clip: Path | Blob) -> Fingerprint:
        """Return the fingerprint of a clip, which is compared to find near-duplicates."""
        header, blobs = self._ask(clip, {"do": "fingerprint"}, self._limits.timeout_seconds)
        images = np.stack([np.frombuffer(blob, dtype=np.uint8) for blob in blobs])
        return Fingerprint(images.reshape(len(blobs), -1, FINGERPRINT_SIDE, FINGERPRINT_SIDE), header["sound"])

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Process ids of the idle child processes, in the order in which they are used next."""
        with self._idle.mutex:
            children = list(reversed(self._idle.queue))
        return tuple(child.pid for child in children if child.pid is not None)

    def close(self) -> None:
        """End the idle child processes. Busy ones end with this process."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _ask(
        self, clip: Path | Blob, request: dict[str, Any], timeout_seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Run one request in a child process within `timeout_seconds`; return header and blobs."""
        whole = {**request, "limits": asdict(self._limits), "threads": self._threads}
        child = self._idle.get()
        try:
            # Too many open files, or no memory for a process, is not the clip's fault.
            with system_errors.converted("the clip cannot be decoded now"):
                if isinstance(clip, Blob) and clip.path is None:
                    return child.ask(whole, clip, timeout_seconds)
                path = clip if isinstance(clip, Path) else clip.path
                assert path is not None
                with path.open("rb") as file:
                    return child.ask(whole, file, timeout_seconds)
        finally:
            self.unsandboxed_reason = child.unsandboxed_reason
            self._idle.put(child)


class _Child:
    """One decoding process, started on first use and again after it died."""

    _warned = False  # log the warning once per service process

    def __init__(self) -> None:
        self.unsandboxed_reason: str | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None before the process is started."""
        return None if self._process is None else self._process.pid

    def ask(
        self, request: dict[str, Any], source: BinaryIO | Blob, timeout_seconds: float, *, again: bool = True
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Send a request, serve the byte ranges that the child requests, and return header and blobs."""
        pipe, pid = self._ensure_started()
        begun = False
        try:
            size_bytes = source.size_bytes if isinstance(source, Blob) else None
            pipe.send_bytes(json.dumps({**request, "size_bytes": size_bytes}).encode())
            if not isinstance(source, Blob):
                send_file(pipe, source, pid)
            deadline, worked = time.monotonic() + timeout_seconds, _cpu_seconds(pid)
            while True:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    worked = _cpu_seconds(pid) - worked
                    self.close()
                    if worked < timeout_seconds / 4:  # too little CPU time to blame the clip
                        raise Overloaded("the machine is too busy to decode the clip in time; try again", _BUSY_SECONDS)
                    raise Undecodable(f"decoding took longer than the limit of {timeout_seconds:.0f} seconds")
                header, begun = json.loads(pipe.recv_bytes()), True
                if "read" not in header or not isinstance(source, Blob):
                    break
                began = time.monotonic()
                try:
                    pipe.send_bytes(source.read(header["read"], RANGE_BYTES))
                except ReelsError:
                    self.close()  # the child would wait for the bytes forever
                    raise
                deadline += time.monotonic() - began  # a slow store is not the clip's fault
            blobs = [pipe.recv_bytes() for _ in range(header.get("blobs", 0))]
        except (EOFError, OSError) as error:
            if again and not begun and isinstance(error, BrokenPipeError | ConnectionResetError):
                self.close()  # the process ended before it read the request, so the clip is not to blame
                return self.ask(request, source, timeout_seconds, again=False)
            raise Undecodable(f"the decoder {self._end()} on this file") from error
        self.unsandboxed_reason = header["unconfined"]
        if self.unsandboxed_reason and not _Child._warned:
            _Child._warned = True
            log.warning("decoder runs without a system call filter", reason=self.unsandboxed_reason)
        if "error" in header:
            if "traceback" in header:
                log.error("decoder failed unexpectedly", traceback=header["traceback"])
            raise from_wire(header)
        return header, blobs

    def _end(self) -> str:
        """Close this child and describe how its process ended."""
        code = None
        if self._process is not None:
            self._process.join(_END_SECONDS)
            code = self._process.exitcode
        self.close()
        if code is None:
            return "closed its connection"
        if code >= 0:
            return f"exited with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGKILL":
            return "was killed (SIGKILL, probably because memory ran out)"
        if name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"):
            return f"crashed ({name})"
        return f"was terminated ({name})"

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _ensure_started(self) -> tuple[Connection, int]:
        """Return the pipe and the process id; start a process if none is alive."""
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self.close()
            # Never fork: torch and FAISS hold threads and locks in the parent.
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), name="reelsrs-decoder", daemon=True)
            self._process.start()
            theirs.close()
            # Starting takes time, which must not count against the clip's time limit.
            if not self._pipe.poll(_START_SECONDS):
                self.close()
                raise Overloaded("the machine is too busy to start a decoder; try again", _BUSY_SECONDS)
            try:
                response = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                raise Unavailable(f"a decoder cannot be started: it {self._end()}") from None
            if "error" in response:
                self.close()
                log.error("decoder not started", traceback=response["traceback"])
                raise Unavailable(f"a decoder cannot be started: {response['error']}")
        assert self._process.pid is not None
        return self._pipe, self._process.pid


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used so far.

    If the system does not report them, return the clock's seconds, as if the process computed without pause.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
