"""Decoding in child processes.

A decoder that crashes, hangs or eats memory must cost one video and nothing else, so `Decoder` talks to child processes
over a pipe, with a time limit, and replaces one that dies. Only JSON and raw bytes cross the pipe. The child opens one
local file with a list of allowed containers: a playlist that names other files or addresses is not a video here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from service.domain import Picture, Probe, Sampling
from service.errors import InvalidInput, ReelsError, Undecodable
from service.video.container import Limits, probe
from service.video.fingerprint import FINGERPRINT_SIDE, Fingerprint, fingerprint
from service.video.pixels import Pixels
from service.video.sampling import Sample, sample, still

_MEMORY_BYTES = 4 << 30
_COURTESY = 9  # less than what a worker stands behind the service, whose own decoders somebody waits for
_PROBE_SECONDS = 30.0  # somebody waits for the answer to an upload


class Decoder:
    """Decodes in `processes` child processes; safe to call from that many threads at once. They share the cores out.

    `keyframes` takes the keyframes next to the frames that a sampling names: quicker in long clips, and not exact.

    Raises Undecodable where the clip is at fault, InvalidInput where it is longer or larger than the limits.
    """

    def __init__(self, limits: Limits, processes: int = 1, *, keyframes: bool = False) -> None:
        self.processes = processes
        self._keyframes = keyframes
        self._threads = max(1, (os.cpu_count() or 1) // processes)
        self._limits = limits
        self._idle: queue.Queue[_Child] = queue.Queue()
        for _ in range(processes):
            self._idle.put(_Child())

    def probe(self, path: Path) -> Probe:
        """What the container says, once its first frame was decoded."""
        header, _ = self._ask({"do": "probe", "path": str(path)}, min(_PROBE_SECONDS, self._limits.timeout_seconds))
        return Probe(**header["probe"])

    def sample(self, path: Path, sampling: Sampling, picture: Picture) -> Sample:
        """The frames that `sampling` names, as `picture` asks; fewer where the clip has fewer."""
        request = {
            "do": "sample",
            "path": str(path),
            "sampling": asdict(sampling),
            "picture": asdict(picture),
            "keyframes": self._keyframes,
        }
        header, blobs = self._ask(request, self._limits.timeout_seconds)
        pixels = np.frombuffer(bytearray(blobs[0]), dtype=np.uint8)  # writable, as torch wants it
        return Sample(
            probe=Probe(**header["probe"]),
            times=np.array(header["times"], dtype=np.float64),
            pixels=pixels.reshape(-1, picture.height, picture.width, 3),
            jpegs=tuple(blobs[1:]),
        )

    def picture(self, path: Path, picture: Picture) -> Pixels:
        """(H, W, 3) uint8: a still picture, as `picture` asks. Raises Undecodable, InvalidInput."""
        request = {"do": "picture", "path": str(path), "picture": asdict(picture)}
        _, blobs = self._ask(request, min(_PROBE_SECONDS, self._limits.timeout_seconds))
        pixels = np.frombuffer(bytearray(blobs[0]), dtype=np.uint8)
        return pixels.reshape(picture.height, picture.width, 3)

    def fingerprint(self, path: Path) -> Fingerprint:
        """What the clip looks like, for a comparison with others."""
        _, blobs = self._ask({"do": "fingerprint", "path": str(path)}, self._limits.timeout_seconds)
        pictures = np.stack([np.frombuffer(blob, dtype=np.uint8) for blob in blobs])
        return Fingerprint(pictures.reshape(len(blobs), -1, FINGERPRINT_SIDE, FINGERPRINT_SIDE))

    def close(self) -> None:
        """End the child processes that are idle; those at work end with this process."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _ask(self, request: dict[str, Any], timeout_seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        child = self._idle.get()
        try:
            return child.ask({**request, "limits": asdict(self._limits), "threads": self._threads}, timeout_seconds)
        finally:
            self._idle.put(child)


class _Child:
    """One decoding process, started when first asked and again after it died."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def ask(self, request: dict[str, Any], timeout_seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        pipe = self._started()
        try:
            pipe.send_bytes(json.dumps(request).encode())
            if not pipe.poll(timeout_seconds):
                self.close()
                raise Undecodable(f"decoding took longer than {timeout_seconds:.0f} seconds")
            header = json.loads(pipe.recv_bytes())
            blobs = [pipe.recv_bytes() for _ in range(header.get("blobs", 0))]
        except (EOFError, OSError) as error:
            self.close()
            raise Undecodable("the decoder crashed or ran out of memory on this file") from error
        if "error" in header:
            raise _from_wire(header)
        return header, blobs

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self.close()
            # Never fork: torch and FAISS hold threads and locks in the parent.
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="reelsrs-decoder", daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe


def _serve(pipe: Connection) -> None:
    """Answer requests until the parent closes the pipe or dies."""
    import signal

    # Ctrl-C on a terminal reaches the whole group; the parent decides when its children end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        # The model's threads wait for each other: one that has to share its core with a decoder holds up all of them.
        os.nice(_COURTESY)
    _limit_resources()
    import av

    av.logging.set_level(None)
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        limits = Limits(**request["limits"])
        path, threads = Path(request["path"]), request["threads"]
        try:
            if request["do"] == "probe":
                header, blobs = {"probe": asdict(probe(path, limits))}, []
            elif request["do"] == "fingerprint":
                header, blobs = (
                    {},
                    [pictures.tobytes() for pictures in fingerprint(path, limits, threads=threads).pictures],
                )
            elif request["do"] == "picture":
                header, blobs = {}, [still(path, Picture(**request["picture"]), limits).tobytes()]
            else:
                sampling, picture = Sampling(**request["sampling"]), Picture(**request["picture"])
                sampled = sample(path, sampling, picture, limits, keyframes=request["keyframes"], threads=threads)
                header = {"probe": asdict(sampled.probe), "times": sampled.times.tolist()}
                blobs = [sampled.pixels.tobytes(), *sampled.jpegs]
        except ReelsError as error:
            header, blobs = _to_wire(error), []
        except MemoryError:
            header, blobs = _to_wire(Undecodable("decoding this file needs more memory than is allowed")), []
        pipe.send_bytes(json.dumps({**header, "blobs": len(blobs)}).encode())
        for blob in blobs:
            pipe.send_bytes(blob)
        header, blobs = {}, []
        _give_back_memory()


def _give_back_memory() -> None:
    """What a clip took, to the system. A container and its streams refer to each other, so their frames stay until the
    collector happens by, some megabytes a clip; and the allocator keeps what was freed."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc alone has it, and needs it
        trim(0)


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit and the process boundary remain
        return
    # macOS refuses an address space limit: there, too, the process boundary remains.
    for name, limit in (("RLIMIT_AS", _MEMORY_BYTES), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError):
            continue


def _to_wire(error: ReelsError) -> dict[str, Any]:
    if isinstance(error, InvalidInput):
        return {"error": error.message, "field": error.field}
    return {"error": str(error)}


def _from_wire(header: dict[str, Any]) -> ReelsError:
    if "field" in header:
        return InvalidInput(header["field"], header["error"])
    return Undecodable(header["error"])
