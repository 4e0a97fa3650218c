"""Decoding in child processes.

A decoder that crashes, hangs or eats memory must cost one video and nothing else, so `Decoder` talks to child processes
over a pipe, with a time limit, and replaces one that dies. Only JSON, raw bytes and open files cross the pipe: the
child is handed the one file it is to read, or asks for ranges of its bytes where they lie elsewhere, and `jail` keeps
it from any other.
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
from service.media.child import RANGE_BYTES, from_wire, hand_over, serve
from service.media.container import Limits
from service.media.fingerprint import FINGERPRINT_SIDE, Fingerprint
from service.media.pixels import Pixels
from service.media.sampling import Sample
from service.models import Blob, Picture, Probe, Sampling

log = structlog.get_logger(__name__)
_START_SECONDS = 60
_END_SECONDS = 5  # for a process whose pipe is closed to be gone, too
_BUSY_SECONDS = 10  # after which whoever sent a clip may try again
_PROBE_SECONDS = 8.0  # hundreds of times what it takes, and somebody waits for the answer to an upload


class Decoder:
    """Decodes in `processes` child processes; safe to call from that many threads at once. They share the cores out.

    `keyframes` takes the keyframes next to the frames that a sampling names: quicker in long clips, and not exact.

    Raises Undecodable where the clip is at fault, InvalidInput where it is longer or larger than the limits, Overloaded
    where its time was up before a decoder had done much, because others kept the machine busy, Unavailable where no
    child process can be started, InternalError where the decoder's own code failed.
    """

    def __init__(self, limits: Limits, processes: int = 1, *, keyframes: bool = False) -> None:
        self.processes = processes
        self.unconfined: str | None = None
        """Why the last clip was decoded without a filter of system calls; None where there was one."""
        self._keyframes = keyframes
        self._threads = max(1, (os.cpu_count() or 1) // processes)
        self._limits = limits
        # Last in, first out: what comes one after another keeps one process busy, and no other need be started.
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(_Child())

    def probe(self, path: Path) -> Probe:
        """What the container says, once its first frame was decoded."""
        header, _ = self._ask(path, {"do": "probe"}, min(_PROBE_SECONDS, self._limits.timeout_seconds))
        return Probe(**header["probe"])

    def sample(self, clip: Path | Blob, sampling: Sampling, picture: Picture) -> Sample:
        """The frames that `sampling` names, as `picture` asks; fewer where the clip has fewer."""
        request = {
            "do": "sample",
            "sampling": asdict(sampling),
            "picture": asdict(picture),
            "keyframes": self._keyframes,
        }
        header, blobs = self._ask(clip, request, self._limits.timeout_seconds)
        pixels = np.frombuffer(bytearray(blobs[0]), dtype=np.uint8)  # writable, as torch wants it
        return Sample(
            probe=Probe(**header["probe"]),
            times=np.array(header["times"], dtype=np.float64),
            pixels=pixels.reshape(-1, picture.height, picture.width, 3),
            jpegs=tuple(blobs[1:]),
        )

    def picture(self, path: Path, picture: Picture) -> Pixels:
        """(H, W, 3) uint8: a still picture, as `picture` asks. Raises Undecodable, InvalidInput."""
        request = {"do": "picture", "picture": asdict(picture)}
        _, blobs = self._ask(path, request, min(_PROBE_SECONDS, self._limits.timeout_seconds))
        pixels = np.frombuffer(bytearray(blobs[0]), dtype=np.uint8)
        return pixels.reshape(picture.height, picture.width, 3)

    def fingerprint(self, clip: Path | Blob) -> Fingerprint:
        """What the clip looks like, for a comparison with others."""
        _, blobs = self._ask(clip, {"do": "fingerprint"}, self._limits.timeout_seconds)
        pictures = np.stack([np.frombuffer(blob, dtype=np.uint8) for blob in blobs])
        return Fingerprint(pictures.reshape(len(blobs), -1, FINGERPRINT_SIDE, FINGERPRINT_SIDE))

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Of the child processes that are idle, the one that is asked next first."""
        with self._idle.mutex:
            children = list(reversed(self._idle.queue))
        return tuple(child.pid for child in children if child.pid is not None)

    def close(self) -> None:
        """End the child processes that are idle; those at work end with this process."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _ask(
        self, clip: Path | Blob, request: dict[str, Any], timeout_seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        whole = {**request, "limits": asdict(self._limits), "threads": self._threads}
        child = self._idle.get()
        try:
            # Too many open files, or no room for a process, is not the clip's fault.
            with system_errors.named("the clip cannot be decoded now"):
                if isinstance(clip, Blob) and clip.path is None:
                    return child.ask(whole, clip, timeout_seconds)
                path = clip if isinstance(clip, Path) else clip.path
                assert path is not None
                with path.open("rb") as file:
                    return child.ask(whole, file, timeout_seconds)
        finally:
            self.unconfined = child.unconfined
            self._idle.put(child)


class _Child:
    """One decoding process, started when first asked and again after it died."""

    _complained = False  # once a process is enough

    def __init__(self) -> None:
        self.unconfined: str | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """None while it is not started."""
        return None if self._process is None else self._process.pid

    def ask(
        self, request: dict[str, Any], source: BinaryIO | Blob, timeout_seconds: float, *, again: bool = True
    ) -> tuple[dict[str, Any], list[bytes]]:
        pipe, pid = self._started()
        begun = False
        try:
            size_bytes = source.size_bytes if isinstance(source, Blob) else None
            pipe.send_bytes(json.dumps({**request, "size_bytes": size_bytes}).encode())
            if not isinstance(source, Blob):
                hand_over(pipe, source, pid)
            deadline, worked = time.monotonic() + timeout_seconds, _cpu_seconds(pid)
            while True:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    worked = _cpu_seconds(pid) - worked
                    self.close()
                    if worked < timeout_seconds / 4:  # it hardly had its turn: of the clip that says nothing
                        raise Overloaded("the machine is too busy to decode a clip in time; try again", _BUSY_SECONDS)
                    raise Undecodable(f"decoding took longer than {timeout_seconds:.0f} seconds")
                header, begun = json.loads(pipe.recv_bytes()), True
                if "read" not in header or not isinstance(source, Blob):
                    break
                began = time.monotonic()
                try:
                    pipe.send_bytes(source.read(header["read"], RANGE_BYTES))
                except ReelsError:
                    self.close()  # it waits for bytes that do not come
                    raise
                deadline += time.monotonic() - began  # a slow store is not the clip's fault
            blobs = [pipe.recv_bytes() for _ in range(header.get("blobs", 0))]
        except (EOFError, OSError) as error:
            if again and not begun and isinstance(error, BrokenPipeError | ConnectionResetError):
                self.close()  # it ended before it read the request: of the clip that says nothing
                return self.ask(request, source, timeout_seconds, again=False)
            raise Undecodable(f"the decoder {self._end()} on this file") from error
        self.unconfined = header["unconfined"]
        if self.unconfined and not _Child._complained:
            _Child._complained = True
            log.warning("decoders run without a filter of system calls", because=self.unconfined)
        if "error" in header:
            if "traceback" in header:
                log.error("a decoder failed unexpectedly", traceback=header["traceback"])
            raise from_wire(header)
        return header, blobs

    def _end(self) -> str:
        """How the process ended, as far as is known; it is gone then."""
        code = None
        if self._process is not None:
            self._process.join(_END_SECONDS)
            code = self._process.exitcode
        self.close()
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGKILL":
            return "was killed (SIGKILL), as the system does when memory runs out,"
        if name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"):
            return f"crashed ({name})"
        return f"was ended ({name})"

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _started(self) -> tuple[Connection, int]:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self.close()
            # Never fork: torch and FAISS hold threads and locks in the parent.
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), name="reelsrs-decoder", daemon=True)
            self._process.start()
            theirs.close()
            # To start takes its time, which is not to be taken from a clip's.
            if not self._pipe.poll(_START_SECONDS):
                self.close()
                raise Overloaded("the machine is too busy to start a decoder; try again", _BUSY_SECONDS)
            try:
                said = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                raise Unavailable(f"a decoder cannot be started: it {self._end()}") from None
            if "error" in said:
                self.close()
                log.error("a decoder cannot be started", traceback=said["traceback"])
                raise Unavailable(f"a decoder cannot be started: {said['error']}")
        assert self._process.pid is not None
        return self._pipe, self._process.pid


def _cpu_seconds(pid: int) -> float:
    """What a process has computed so far; where the system does not tell, as if it did nothing else."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
