"""Decoding in child processes.

A decoder that crashes, hangs or eats memory must cost one video and nothing else, so `Decoder` talks to child processes
over a pipe, with a time limit, and replaces one that dies. Only JSON, raw bytes and open files cross the pipe: the
child is handed the one file it is to read, or asks for ranges of its bytes where they lie elsewhere, and `jail` keeps
it from any other.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import json
import multiprocessing
import os
import queue
import signal
import sys
import time
import traceback
from dataclasses import asdict
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import structlog

from service import faults
from service.domain import Blob, Picture, Probe, Sampling
from service.errors import InternalError, InvalidInput, Overloaded, ReelsError, Unavailable, Undecodable
from service.media.container import Limits, probe
from service.media.fingerprint import FINGERPRINT_SIDE, Fingerprint, fingerprint
from service.media.jail import confine
from service.media.pixels import Pixels
from service.media.sampling import Sample, sample, still

log = structlog.get_logger(__name__)

_COURTESY = 9  # less than what a worker stands behind the service, whose own decoders somebody waits for
_RANGE_BYTES = 1 << 20  # fetched at a time where a clip lies elsewhere
_START_SECONDS = 60
_END_SECONDS = 5  # for a process whose pipe is closed to be gone, too
# What code raises that is wrong. Anything else that a decoder raises is taken for the file's doing: libraries meet
# bytes that nobody thought of with errors of arithmetic, lookup or value.
_MISTAKES = (TypeError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError)
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
            with faults.named("the clip cannot be decoded now"):
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
                _hand_over(pipe, source, pid)
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
                    pipe.send_bytes(source.read(header["read"], _RANGE_BYTES))
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
            raise _from_wire(header)
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
            self._process = context.Process(target=_serve, args=(theirs,), name="reelsrs-decoder", daemon=True)
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


def _serve(pipe: Connection) -> None:
    """Answer requests until the parent closes the pipe or dies."""
    # Ctrl-C on a terminal reaches the whole group; the parent decides when its children end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        # The model's threads wait for each other: one that has to share its core with a decoder holds up all of them.
        os.nice(_COURTESY)
    try:
        _load_all()
        gc.collect()
        gc.freeze()  # what stays need not be looked through after every clip
        unconfined = confine()
    except Exception as error:
        pipe.send_bytes(json.dumps(_told(error)).encode())
        return
    pipe.send_bytes(json.dumps({}).encode())
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
            size_bytes = request["size_bytes"]
            file = _handed_over(pipe) if size_bytes is None else _elsewhere(pipe, size_bytes)
        except (EOFError, OSError):
            return
        limits, threads = Limits(**request["limits"]), request["threads"]
        try:
            with file:
                header, blobs = _answer(request, file, limits, threads)
        except ReelsError as error:
            header, blobs = _to_wire(error), []
        except MemoryError:
            header, blobs = _to_wire(Undecodable("decoding this file needs more memory than is allowed")), []
        except Exception as error:
            header, blobs = {**_told(error), "mistake": isinstance(error, _MISTAKES)}, []
        pipe.send_bytes(json.dumps({**header, "blobs": len(blobs), "unconfined": unconfined}).encode())
        for blob in blobs:
            pipe.send_bytes(blob)
        header, blobs = {}, []
        _give_back_memory()


def _load_all() -> None:
    """Libraries load parts of themselves when they are needed, which in the jail they cannot: do everything once."""
    import importlib
    import io
    import pkgutil

    import av
    from PIL import Image

    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    av.logging.set_level(None)
    Image.init()
    clip, picture = io.BytesIO(), io.BytesIO()
    grey = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    pixels = np.stack([grey] * 3, axis=2)
    with av.open(clip, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=64)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    Image.fromarray(pixels).save(picture, "JPEG")
    common = {"picture": asdict(Picture(32, 32)), "sampling": asdict(Sampling(2)), "keyframes": False}
    for do, file in (("probe", clip), ("sample", clip), ("fingerprint", clip), ("picture", picture)):
        _answer({"do": do, **common}, io.BytesIO(file.getvalue()), Limits(60, 64 * 64), 1)


def _answer(
    request: dict[str, Any], file: BinaryIO, limits: Limits, threads: int
) -> tuple[dict[str, Any], list[bytes]]:
    if request["do"] == "probe":
        return {"probe": asdict(probe(file, limits))}, []
    if request["do"] == "fingerprint":
        return {}, [pictures.tobytes() for pictures in fingerprint(file, limits, threads=threads).pictures]
    picture = Picture(**request["picture"])
    if request["do"] == "picture":
        return {}, [still(file, picture, limits).tobytes()]
    sampling = Sampling(**request["sampling"])
    sampled = sample(file, sampling, picture, limits, keyframes=request["keyframes"], threads=threads)
    header = {"probe": asdict(sampled.probe), "times": sampled.times.tolist()}
    return header, [sampled.pixels.tobytes(), *sampled.jpegs]


def _hand_over(pipe: Connection, file: BinaryIO, pid: int) -> None:
    handle = file.fileno()
    if sys.platform == "win32":
        import msvcrt

        handle = msvcrt.get_osfhandle(handle)
    reduction.send_handle(pipe, handle, pid)


def _handed_over(pipe: Connection) -> BinaryIO:
    handle = reduction.recv_handle(pipe)
    if sys.platform == "win32":
        import msvcrt

        handle = msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY)
    return os.fdopen(handle, "rb")


def _cpu_seconds(pid: int) -> float:
    """What a process has computed so far; where the system does not tell, as if it did nothing else."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _elsewhere(pipe: Connection, size_bytes: int) -> BinaryIO:
    return io.BufferedReader(_Elsewhere(pipe, size_bytes), _RANGE_BYTES)


class _Elsewhere(io.RawIOBase):
    """Bytes that the parent fetches, range by range."""

    def __init__(self, pipe: Connection, size_bytes: int) -> None:
        self._pipe = pipe
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size_bytes:
            return 0
        self._pipe.send_bytes(json.dumps({"read": self._at}).encode())
        data = self._pipe.recv_bytes()[: len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _give_back_memory() -> None:
    """What a clip took, to the system. A container and its streams refer to each other, so their frames stay until the
    collector happens by, some megabytes a clip; and the allocator keeps what was freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc alone has it, and needs it
        trim(0)


def _told(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _to_wire(error: ReelsError) -> dict[str, Any]:
    if isinstance(error, InvalidInput):
        return {"error": error.message, "field": error.field}
    return {"error": str(error)}


def _from_wire(header: dict[str, Any]) -> ReelsError:
    if "field" in header:
        return InvalidInput(header["field"], header["error"])
    if "mistake" in header:
        if header["mistake"]:
            return InternalError(f"the decoder failed: {header['error']}")
        return Undecodable(f"the file cannot be decoded: {header['error']}")
    return Undecodable(header["error"])
