"""Run a decoder's child process, which answers requests from a pipe one at a time."""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import numpy as np

from service.errors import InternalError, InvalidInput, ReelsError, Undecodable
from service.media.container import Limits, probe
from service.media.fingerprint import fingerprint
from service.media.images import read_image
from service.media.sampling import sample
from service.media.sandbox import enter_sandbox
from service.models import ImageSpec, Sampling

_NICE = 9  # nice value; a worker's is 10: clients wait for the decoders of the service itself
RANGE_BYTES = 1 << 20  # fetched at a time if the clip is not on this machine
# Errors that show a bug in our code. Any other error is blamed on the file: libraries react to unexpected bytes with
# errors of arithmetic, lookup or value.
_BUGS = (TypeError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError)


def serve(pipe: Connection) -> None:
    """Answer requests until the parent closes the pipe or dies."""
    # Ctrl-C on a terminal reaches the whole process group, but the parent decides when its children end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        # The model's threads wait for each other. If one shares its core with a decoder, all of them are delayed.
        os.nice(_NICE)
    try:
        _load_all()
        gc.collect()
        gc.freeze()  # these objects stay, so later collections can skip them
        unsandboxed_reason = enter_sandbox()
    except Exception as error:
        pipe.send_bytes(json.dumps(_unexpected_to_wire(error)).encode())
        return
    pipe.send_bytes(json.dumps({}).encode())
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
            size_bytes = request["size_bytes"]
            file = _receive_file(pipe) if size_bytes is None else _range_reader(pipe, size_bytes)
        except (EOFError, OSError):
            return
        limits, threads = Limits(**request["limits"]), request["threads"]
        try:
            with file:
                header, blobs = _answer(request, file, limits, threads)
        except ReelsError as error:
            header, blobs = _to_wire(error), []
        except MemoryError:
            header, blobs = _to_wire(Undecodable("decoding this file needs more memory than the limit allows")), []
        except Exception as error:
            header, blobs = {**_unexpected_to_wire(error), "mistake": isinstance(error, _BUGS)}, []
        pipe.send_bytes(json.dumps({**header, "blobs": len(blobs), "unconfined": unsandboxed_reason}).encode())
        for blob in blobs:
            pipe.send_bytes(blob)
        header, blobs = {}, []
        _give_back_memory()


def _load_all() -> None:
    """Run every operation once, so that libraries load all of their parts.

    They load parts on first use, which is impossible in the sandbox.
    """
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
    clip, image = io.BytesIO(), io.BytesIO()
    grey = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    pixels = np.stack([grey] * 3, axis=2)
    with av.open(clip, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=64)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    Image.fromarray(pixels).save(image, "JPEG")
    common = {"picture": asdict(ImageSpec(32, 32)), "sampling": asdict(Sampling(2)), "keyframes": False}
    for operation, file in (("probe", clip), ("sample", clip), ("fingerprint", clip), ("picture", image)):
        _answer({"do": operation, **common}, io.BytesIO(file.getvalue()), Limits(60, 64 * 64), 1)


def _answer(
    request: dict[str, Any], file: BinaryIO, limits: Limits, threads: int
) -> tuple[dict[str, Any], list[bytes]]:
    """Run one request; return the header and the blobs of its response."""
    if request["do"] == "probe":
        return {"probe": asdict(probe(file, limits))}, []
    if request["do"] == "fingerprint":
        made = fingerprint(file, limits, threads=threads)
        return {"sound": made.sound}, [variant.tobytes() for variant in made.images]
    image_spec = ImageSpec(**request["picture"])
    if request["do"] == "picture":
        return {}, [read_image(file, image_spec, limits).tobytes()]
    sampling = Sampling(**request["sampling"])
    sampled = sample(file, sampling, image_spec, limits, keyframes=request["keyframes"], threads=threads)
    header = {"probe": asdict(sampled.probe), "times": sampled.times.tolist()}
    return header, [sampled.pixels.tobytes(), *sampled.thumbnails]


def send_file(pipe: Connection, file: BinaryIO, pid: int) -> None:
    """Send an open file through the pipe to the process `pid`."""
    handle = file.fileno()
    if sys.platform == "win32":
        import msvcrt

        handle = msvcrt.get_osfhandle(handle)
    reduction.send_handle(pipe, handle, pid)


def _receive_file(pipe: Connection) -> BinaryIO:
    handle = reduction.recv_handle(pipe)
    if sys.platform == "win32":
        import msvcrt

        handle = msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY)
    return os.fdopen(handle, "rb")


def _range_reader(pipe: Connection, size_bytes: int) -> BinaryIO:
    return io.BufferedReader(_RangeReader(pipe, size_bytes), RANGE_BYTES)


class _RangeReader(io.RawIOBase):
    """Read-only file whose bytes the parent process fetches, range by range."""

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
            raise OSError(errno.EINVAL, "cannot seek before the start of the file")
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
    """Return the memory that a clip used to the system.

    A container and its streams refer to each other. Their frames, some megabytes a clip, would stay until the next
    garbage collection. The allocator also keeps memory that was freed.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # only glibc has malloc_trim, and needs it
        trim(0)


def _unexpected_to_wire(error: Exception) -> dict[str, Any]:
    """Return the response header for an unexpected error, with its traceback."""
    return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _to_wire(error: ReelsError) -> dict[str, Any]:
    """Return the response header for an error of the service, which `from_wire` reverses."""
    if isinstance(error, InvalidInput):
        return {"error": error.message, "field": error.field}
    return {"error": str(error)}


def from_wire(header: dict[str, Any]) -> ReelsError:
    """Return the error that a response header from the child describes."""
    if "field" in header:
        return InvalidInput(header["field"], header["error"])
    if "mistake" in header:
        if header["mistake"]:
            return InternalError(f"the decoder failed: {header['error']}")
        return Undecodable(f"the file cannot be decoded: {header['error']}")
    return Undecodable(header["error"])
