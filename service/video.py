"""Probe clips, sample their frames and take their fingerprints (PyAV), in a process of its own. Knows no row and no
model.

Clips come from strangers. A decoder that crashes, hangs or eats memory must cost one video and nothing else, so
`Decoder` talks to child processes over a pipe, with a time limit, and replaces one that dies. Only JSON and raw
bytes cross the pipe. The child opens one local file with a list of allowed containers: a playlist that names other
files or addresses is not a video here.

Which frames: either spread evenly in time over the whole clip, each in the middle of its share (so that neither a
black first frame nor the end is taken), or every Nth from the start. A frame is found exactly, by its time stamp:
the packets are listed first, without decoding, and for each target the decoder reads on or, where a keyframe lies
between, seeks.
"""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import queue
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from service.domain import Picture, Probe, Sampling
from service.errors import InvalidInput, ReelsError, Undecodable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)
"""File name endings that an import takes for videos. What a file really is, its bytes say."""

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif"
_PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MEMORY_BYTES = 4 << 30
_JPEG_LONG_SIDE = 640
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art of a song is not a video
_PROBE_PACKETS = 250
_PROBE_SECONDS = 30.0  # somebody waits for the answer to an upload

FINGERPRINT_SIDE = 16
_FINGERPRINT_FRAMES = 1024  # every frame of half a minute; 256 kB
_WORKING_SIDE = 256  # pixels: fine enough to find the edge of a black bar
_BLACK = 16  # of 255: the mean of a row of a black bar stays below, compression noise and all
_BLANK = 6.0  # of 255: a picture whose standard deviation is below shows nothing


@dataclass(frozen=True, slots=True)
class Limits:
    """What a clip may cost. `timeout_seconds` is for one whole request to the decoder."""

    max_duration_seconds: float
    max_pixels: int
    timeout_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The sampled frames of a clip, in order.

    times (N,) float64, seconds from the clip's first frame; pixels (N, H, W, 3) uint8 RGB at the model's size;
    jpegs N pictures to look at, whole frames, at most 640 pixels long.
    """

    probe: Probe
    times: npt.NDArray[np.float64]
    pixels: Pixels
    jpegs: tuple[bytes, ...]

    def __post_init__(self) -> None:
        count = len(self.times)
        if count == 0 or self.pixels.shape[0] != count or len(self.jpegs) != count or self.pixels.shape[3] != 3:
            raise ValueError(f"{count} times, pixels {self.pixels.shape}, {len(self.jpegs)} pictures do not fit")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a clip looks like, small: its frames in order, without the blank ones.

    pictures (V, N, 16, 16) uint8, grey, each stretched to a square. V is 1, or 2 where the clip has black borders:
    first without them, then with them. N is 0 where every frame is blank.
    """

    pictures: Pixels

    def __post_init__(self) -> None:
        side = FINGERPRINT_SIDE
        shape = self.pictures.shape
        if self.pictures.dtype != np.uint8 or len(shape) != 4 or shape[0] not in (1, 2) or shape[2:] != (side, side):
            raise ValueError(f"no fingerprint: {self.pictures.dtype} pictures {self.pictures.shape}")


class Decoder:
    """Decodes in `processes` child processes; safe to call from that many threads at once.

    Raises Undecodable where the clip is at fault, InvalidInput where it is longer or larger than the limits.
    """

    def __init__(self, limits: Limits, processes: int = 1) -> None:
        self.processes = processes
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
            return child.ask({**request, "limits": asdict(self._limits)}, timeout_seconds)
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


# --- in the child process


def _serve(pipe: Connection) -> None:
    """Answer requests until the parent closes the pipe or dies."""
    import signal

    # Ctrl-C on a terminal reaches the whole group; the parent decides when its children end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources()
    import av

    av.logging.set_level(None)
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        limits = Limits(**request["limits"])
        path = Path(request["path"])
        try:
            if request["do"] == "probe":
                header, blobs = {"probe": asdict(probe(path, limits))}, []
            elif request["do"] == "fingerprint":
                header, blobs = {}, [pictures.tobytes() for pictures in fingerprint(path, limits).pictures]
            elif request["do"] == "picture":
                header, blobs = {}, [still(path, Picture(**request["picture"]), limits).tobytes()]
            else:
                sampled = sample(path, Sampling(**request["sampling"]), Picture(**request["picture"]), limits)
                header = {"probe": asdict(sampled.probe), "times": sampled.times.tolist()}
                blobs = [sampled.pixels.tobytes(), *sampled.jpegs]
        except ReelsError as error:
            header, blobs = _to_wire(error), []
        except MemoryError:
            header, blobs = _to_wire(Undecodable("decoding this file needs more memory than is allowed")), []
        pipe.send_bytes(json.dumps({**header, "blobs": len(blobs)}).encode())
        for blob in blobs:
            pipe.send_bytes(blob)


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


# --- probing and sampling, callable in any process


def probe(path: Path, limits: Limits) -> Probe:
    """What the container says of itself, once its first frame was decoded.

    Raises Undecodable, and InvalidInput where the clip is beyond `limits`.
    """
    with _opened(path) as container:
        stream = _video_stream(container)
        seconds = _stated_duration(container, stream)
        _check_limits(stream, seconds, limits)
        frame = next(_frames(container, stream, max_packets=_PROBE_PACKETS), None)
        if frame is None:
            raise Undecodable("the file has a video stream, but no frame of it could be decoded")
        return _describe(container, stream, frame, seconds)


def sample(path: Path, sampling: Sampling, picture: Picture, limits: Limits) -> Sample:
    """The frames of a clip that `sampling` names, at the size that `picture` asks for.

    Raises Undecodable, and InvalidInput where the clip is beyond `limits`.
    """
    times: list[float] = []
    pixels: list[Pixels] = []
    jpegs: list[bytes] = []
    described: Probe | None = None
    timeline, seconds = _timeline(path, limits)
    with _opened(path) as container:  # anew: not every container can go back to its start
        stream = _video_stream(container)
        _check_limits(stream, seconds, limits)
        for time_seconds, frame in timeline.frames(container, stream, timeline.sampled(sampling)):
            described = described or _describe(container, stream, frame, seconds)
            _check_frame(frame, limits)
            image = upright(frame)
            display = (described.width, described.height)
            times.append(time_seconds)
            pixels.append(fit(image, picture, display))
            jpegs.append(_jpeg(image, display))
    if described is None:
        raise Undecodable("the file has a video stream, but no frame of it could be decoded")
    return Sample(described, np.array(times), np.stack(pixels), tuple(jpegs))


def still(path: Path, picture: Picture, limits: Limits) -> Pixels:
    """(H, W, 3) uint8: a picture file, upright, at the size that `picture` asks for; of an animation the first frame.

    Raises Undecodable, and InvalidInput where it has more pixels than `limits` allows, before any is unpacked.
    """
    from PIL import Image as PillowImage
    from PIL import ImageOps

    PillowImage.MAX_IMAGE_PIXELS = None  # the limit is ours, and named in our error
    try:
        with PillowImage.open(path, formats=_PICTURES) as image:
            if image.width * image.height > limits.max_pixels:
                size = f"{image.width:,} x {image.height:,}"
                raise InvalidInput("file", f"the picture has {size} pixels; at most {limits.max_pixels:,} are taken")
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except InvalidInput:
        raise
    except Exception as error:  # each format's reader raises its own
        raise Undecodable("the file is not a JPEG, PNG, WebP, GIF or BMP picture that can be read") from error
    return fit(shown, picture, shown.size)


def fingerprint(path: Path, limits: Limits) -> Fingerprint:
    """What a clip looks like: all its frames, or as many as a fingerprint has, evenly spread.

    Raises Undecodable, and InvalidInput where the clip is beyond `limits`.
    """
    pictures: list[Pixels] = []
    size, matrix = (0, 0), (1, 0, 0, 1)
    timeline, seconds = _timeline(path, limits)
    with _opened(path) as container:
        stream = _video_stream(container)
        _check_limits(stream, seconds, limits)
        for _, frame in timeline.frames(container, stream, timeline.spread(_FINGERPRINT_FRAMES)):
            _check_frame(frame, limits)
            if not pictures:  # a stream may change its size on the way: the first frame's holds for all
                scale = min(1.0, _WORKING_SIDE / max(frame.width, frame.height))
                size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
                matrix = _display_matrix(frame)
            pictures.append(_small_grey(frame, size, matrix))
    if not pictures:
        raise Undecodable("the file has a video stream, but no frame of it could be decoded")
    squares = _squares(np.stack(pictures))
    return Fingerprint(squares[:, squares[0].std(axis=(1, 2)) >= _BLANK])


def choose(times: npt.NDArray[np.float64], end: float, sampling: Sampling) -> npt.NDArray[np.intp]:
    """Indices of the sampled frames among frames shown at `times` (N,), ascending, of a clip that ends at `end`.

    Evenly spread: the frame on the screen in the middle of each of `num_frames` equal shares of the clip. Where
    the frame rate varies and two shares show the same frame, the later one takes the next, so that there are
    always as many different frames as were asked for, or as the clip has.
    """
    if sampling.frame_interval is not None:
        return np.arange(0, len(times), sampling.frame_interval)[: sampling.num_frames]
    return _evenly(times, end, sampling.num_frames)


def _evenly(times: npt.NDArray[np.float64], end: float, wanted: int) -> npt.NDArray[np.intp]:
    count = len(times)
    wanted = min(wanted, count)
    middles = times[0] + (np.arange(wanted) + 0.5) * (end - times[0]) / wanted
    chosen = np.clip(np.searchsorted(times, middles, side="right") - 1, 0, count - 1)
    steps = np.arange(wanted)
    chosen = np.maximum.accumulate(chosen - steps) + steps  # strictly ascending, and
    fitting: npt.NDArray[np.intp] = np.minimum(chosen, count - wanted + steps)  # leaving room for those that follow
    return fitting


def fit(image: Image, picture: Picture, display: tuple[int, int]) -> Pixels:
    """(H, W, 3) uint8: `image`, shown as `display` (width, height), resized and cropped as open_clip would.

    The same steps on the same Pillow filters as open_clip's `image_transform`, up to the normalisation, which is
    left to the device. Stretching to the display's aspect and resizing are one step.
    """
    from PIL import Image as PillowImage

    filters = {"bicubic": PillowImage.Resampling.BICUBIC, "bilinear": PillowImage.Resampling.BILINEAR}
    width, height = display
    if picture.resize_mode == "squash":
        size = (picture.width, picture.height)
    elif picture.resize_mode == "shortest" and picture.width == picture.height:
        # torchvision's Resize with one number: the long side is cut off, not rounded.
        side, short, long = picture.width, min(display), max(display)
        longer = int(side * long / short)
        size = (side, longer) if width <= height else (longer, side)
    else:
        extreme = min if picture.resize_mode == "shortest" else max
        ratio = extreme(height / picture.height, width / picture.width)
        size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    resized = image if image.size == size else image.resize(size, filters[picture.interpolation])
    return _centred(np.asarray(resized), picture)


def upright(frame: VideoFrame) -> Image:
    """The frame as RGB, turned as its display matrix says, brought down to standard dynamic range if it is HDR."""
    from PIL import Image as PillowImage

    rgb: Any = frame.to_ndarray(format="rgb24")
    pixels = _standard_range(rgb, frame.color_trc)
    return PillowImage.fromarray(np.ascontiguousarray(_turned(pixels, _display_matrix(frame))))


# --- inside


class _Timeline:
    """Every frame's time stamp, read from the packets without decoding any."""

    def __init__(self, stamps: list[int], keyframes: list[int], length: int, time_base: float) -> None:
        every = np.unique(np.array(stamps, dtype=np.int64))
        self._keyframes = np.unique(np.array(keyframes, dtype=np.int64))
        self._origin = int(every[0]) if len(every) else 0
        # A clip that was cut without care begins with frames that refer to ones cut off: they cannot be shown.
        self._stamps = every[every >= self._keyframes[0]] if len(self._keyframes) else every
        self._time_base = time_base
        gaps = np.diff(self._stamps)
        last = length or (int(np.median(gaps)) if len(gaps) else 0)
        self._end = int(self._stamps[-1]) + last if len(self._stamps) else 0

    @classmethod
    def read(cls, container: InputContainer, stream: VideoStream) -> _Timeline:
        """List the packets to the end of the container."""
        stamps: list[int] = []
        keyframes: list[int] = []
        last, length = None, 0
        with _DamageEnds():
            for packet in container.demux(stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is None or packet.size == 0 or packet.is_discard:
                    continue
                stamps.append(stamp)
                if packet.is_keyframe:
                    keyframes.append(stamp)
                if last is None or stamp > last:
                    last, length = stamp, packet.duration or 0
        return cls(stamps, keyframes, length, float(stream.time_base or 0))

    @property
    def duration_seconds(self) -> float | None:
        """From the first frame's start to the last one's end."""
        if not len(self._stamps):
            return None
        return float(self._end - self._origin) * self._time_base or None

    def sampled(self, sampling: Sampling) -> list[int]:
        """The time stamps of the frames that `sampling` names."""
        if not len(self._stamps):
            return []
        return self._at(choose(self._stamps.astype(np.float64), float(self._end), sampling))

    def spread(self, count: int) -> list[int]:
        """The time stamps of `count` frames, evenly spread; of all, where there are fewer."""
        if not len(self._stamps):
            return []
        return self._at(_evenly(self._stamps.astype(np.float64), float(self._end), count))

    def _at(self, chosen: npt.NDArray[np.intp]) -> list[int]:
        stamps: list[int] = self._stamps[chosen].tolist()
        return stamps

    def frames(
        self, container: InputContainer, stream: VideoStream, stamps: list[int]
    ) -> Iterator[tuple[float, VideoFrame]]:
        """The frames with these time stamps, ascending, each with its time in seconds from the first. A frame that
        is damaged is replaced by the next that is not; at the end of a damaged clip there may be fewer."""
        decoded = _frames(container, stream)
        position = -(1 << 62)
        for target in stamps:
            if target <= position:
                continue  # the last frame stood in for a damaged one and has been taken
            before = self._keyframes[self._keyframes <= target]
            if len(before) > 1 and before[-1] > max(position, int(self._keyframes[0])):
                decoded = self._seek(container, stream, int(before[-1]), target) or decoded
            for frame in decoded:
                if frame.pts is not None and frame.pts >= target:
                    position = frame.pts
                    yield float(position - self._origin) * self._time_base, frame
                    break

    def _seek(
        self, container: InputContainer, stream: VideoStream, keyframe: int, target: int
    ) -> Iterator[VideoFrame] | None:
        """Frames from a keyframe on; None where the container cannot seek. A container's index may be off: where
        it leads past the target, frames from the start, which is slow and right."""
        import av

        for start in (keyframe, int(self._stamps[0])):
            try:
                container.seek(start, stream=stream, backward=True)
            except av.error.FFmpegError:
                return None
            frames = _frames(container, stream)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.pts <= target:
                break
        return frames if first is None else itertools.chain([first], frames)


def _opened(path: Path) -> InputContainer:
    import av

    if path.stat().st_size == 0:
        raise Undecodable("the file is empty")
    try:
        return av.open(
            str(path),
            metadata_errors="replace",  # old tools write metadata in any encoding
            container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
        )
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Undecodable(f"the file is not a video that can be opened: {reason}") from error


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not int(stream.disposition) & _ATTACHED_PICTURE and stream.codec_context is not None:
            stream.thread_type = "AUTO"
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise Undecodable(f"the file has no video stream, only {', '.join(kinds) or 'nothing'}")


def _stated_duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


def _timeline(path: Path, limits: Limits) -> tuple[_Timeline, float | None]:
    """Every frame's time stamp, and how long the clip lasts in seconds, if that can be known."""
    with _opened(path) as container:
        stream = _video_stream(container)
        stated = _stated_duration(container, stream)
        _check_limits(stream, stated, limits)
        timeline = _Timeline.read(container, stream)
    return timeline, timeline.duration_seconds or stated


def _check_frame(frame: VideoFrame, limits: Limits) -> None:
    if frame.width * frame.height > limits.max_pixels:  # a stream may change its size on the way
        raise InvalidInput("file", f"a frame has more than {limits.max_pixels:,} pixels")


def _check_limits(stream: VideoStream, seconds: float | None, limits: Limits) -> None:
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > limits.max_pixels:
        raise InvalidInput("file", f"a frame has {pixels:,} pixels; at most {limits.max_pixels:,} are taken")
    if seconds is not None and seconds > limits.max_duration_seconds:
        raise InvalidInput(
            "file", f"the clip lasts {seconds:.1f} s; at most {limits.max_duration_seconds:.0f} s are taken"
        )


def _frames(container: InputContainer, stream: VideoStream, max_packets: int | None = None) -> Iterator[VideoFrame]:
    """Frames in the order of display. A damaged packet is skipped, a damaged container ends the stream."""
    import av

    with _DamageEnds():
        for number, packet in enumerate(container.demux(stream)):
            if max_packets is not None and number >= max_packets:
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                continue
        return
    try:
        yield from stream.codec_context.decode(None)  # what the decoder still held when the container broke off
    except av.error.FFmpegError:
        return


class _DamageEnds:
    """A container that cannot be read any further has ended, as far as a sampler is concerned."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        import av

        return isinstance(error, av.error.FFmpegError)


def _describe(container: InputContainer, stream: VideoStream, frame: VideoFrame, seconds: float | None) -> Probe:
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio
    if aspect and aspect > 0:
        # Stretch the narrow side, as players do, so that no pixel is lost.
        if aspect >= 1:
            width = max(1, round(width * float(aspect)))
        else:
            height = max(1, round(height / float(aspect)))
    if abs(_display_matrix(frame)[1]) == 1:
        width, height = height, width
    rate = stream.average_rate
    return Probe(
        media_type=_media_type(container, stream),
        codec=stream.codec_context.name,
        width=width,
        height=height,
        duration_seconds=seconds,
        frames_per_second=float(rate) if rate else None,
    )


def _media_type(container: InputContainer, stream: VideoStream) -> str:
    names = set(container.format.name.split(","))
    brand = container.metadata.get("major_brand", "").strip()
    if "mov" in names:
        return {"qt": "video/quicktime", "3gp4": "video/3gpp", "3gp5": "video/3gpp"}.get(brand, "video/mp4")
    if "matroska" in names:
        web = stream.codec_context.name in ("vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d")
        return "video/webm" if web else "video/x-matroska"
    known = {
        "avi": "video/x-msvideo",
        "flv": "video/x-flv",
        "mpegts": "video/mp2t",
        "mpeg": "video/mpeg",
        "asf": "video/x-ms-wmv",
        "ogg": "video/ogg",
        "gif": "image/gif",
    }
    return next((known[name] for name in names if name in known), "application/octet-stream")


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d), each -1, 0 or 1: pixel (x, y) is shown at (a x + c y, b x + d y). Odd angles count as none."""
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if data is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(data), dtype=np.int32)
    a, b, c, d = (int(np.sign(value)) if abs(value) > 0x8000 else 0 for value in matrix[[0, 1, 3, 4]])
    return (a, b, c, d) if (a and d and not b and not c) or (b and c and not a and not d) else (1, 0, 0, 1)


def _turned(pixels: Pixels, matrix: tuple[int, int, int, int]) -> Pixels:
    a, b, c, d = matrix
    if b:  # x and y change places: a quarter turn
        pixels, right, down = pixels.transpose(1, 0, 2), c, b
    else:
        right, down = a, d
    return pixels[:: down or 1, :: right or 1]


_PQ, _HLG = 16, 18  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
_REFERENCE_WHITE_NITS = 203.0  # ITU-R BT.2408
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)


def _standard_range(pixels: Pixels, transfer: int) -> Pixels:
    """HDR pictures look grey and flat to a model that has only seen SDR ones: undo the transfer curve (BT.2100),
    convert the primaries, and roll off what is brighter than paper white."""
    if transfer not in (_PQ, _HLG):
        return pixels
    code = np.arange(256, dtype=np.float32) / 255
    nits: npt.NDArray[np.floating]
    if transfer == _PQ:
        power = code ** np.float32(1 / 78.84375)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** np.float32(
            1 / 0.1593017578125
        )
    else:
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        nits = 1_000 * scene ** np.float32(1.2)
    shown = np.empty(pixels.shape, dtype=np.uint8)
    table = (nits / _REFERENCE_WHITE_NITS).astype(np.float32)
    for row in range(0, len(pixels), 64):  # in strips: floats of a whole 8K frame would take 400 MB
        linear = np.maximum(table[pixels[row : row + 64]] @ _BT2020_TO_BT709.T, 0)
        soft = np.where(linear <= 0.8, linear, 0.8 + 0.2 * (1 - np.exp((0.8 - linear) / 0.2)))
        shown[row : row + 64] = np.rint(255 * soft ** np.float32(1 / 2.2))
    return shown


def _centred(pixels: Pixels, picture: Picture) -> Pixels:
    """Crop to the middle, or pad around it, as torchvision's CenterCrop does."""
    height, width = pixels.shape[:2]
    short_y, short_x = max(picture.height - height, 0), max(picture.width - width, 0)
    if short_y or short_x:
        around = ((short_y // 2, (short_y + 1) // 2), (short_x // 2, (short_x + 1) // 2), (0, 0))
        pixels = np.pad(pixels, around, constant_values=picture.fill_color)
        height, width = pixels.shape[:2]
    top, left = round((height - picture.height) / 2), round((width - picture.width) / 2)
    return np.ascontiguousarray(pixels[top : top + picture.height, left : left + picture.width])


def _jpeg(image: Image, display: tuple[int, int]) -> bytes:
    width, height = display
    scale = min(1.0, _JPEG_LONG_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    buffer = io.BytesIO()
    (image if image.size == size else image.resize(size)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _small_grey(frame: VideoFrame, size: tuple[int, int], matrix: tuple[int, int, int, int]) -> Pixels:
    """(H, W) uint8: the frame as `upright` shows it, but at `size` (width, height) before it is turned. It is scaled
    down first of all, which is what makes a fingerprint cheap."""
    from PIL import Image as PillowImage

    small: Any = frame.reformat(width=size[0], height=size[1], format="rgb24", interpolation="AREA").to_ndarray()
    pixels = _turned(_standard_range(small, frame.color_trc), matrix)
    return np.asarray(PillowImage.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def _squares(pictures: Pixels) -> Pixels:
    """(V, N, 16, 16) uint8 of (N, H, W) grey pictures: the mean of each cell of a grid, without the black borders,
    and with them if there are any.

    A border is what is black in every frame, as wide on both sides: a dark corner of a scene is none. A dark scene
    can still seem to have one, which is why the pictures with borders are kept too.
    """
    height, width = pictures.shape[1:]
    top, bottom = _edges(pictures.mean(axis=2).max(axis=0))
    rows = pictures[:, int(top) : int(np.ceil(bottom))]
    left, right = _edges(rows.mean(axis=1).max(axis=0))
    ways = [(_means(top, bottom, height), _means(left, right, width))]
    if (top, left) != (0, 0):
        ways.append((_means(0, height, height), _means(0, width, width)))
    squares = np.array([[down @ picture @ across.T for picture in pictures] for down, across in ways])
    rounded: Pixels = np.rint(np.clip(squares, 0, 255)).astype(np.uint8)
    return rounded


def _edges(brightness: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Where the picture begins and ends between black borders, given the greatest brightness of each row (N,).

    To a fraction of a row: one that is half black is half as bright as its neighbour. A quarter of a row off, and a
    scene that hardly moves would differ more from its copy than from another gesture.
    """
    count = len(brightness)
    lit = np.flatnonzero(brightness > _BLACK)
    if not len(lit):
        return 0.0, float(count)

    def border(first: int, inner: int, black: int) -> float:
        if not 0 <= inner < count:
            return float(black)
        return black + 1 - min(1.0, float(brightness[first] / max(brightness[inner], 1)))

    begin, end = int(lit[0]), int(lit[-1])
    width = min(border(begin, begin + 1, begin), border(end, end - 1, count - 1 - end))
    return width, count - width


def _means(begin: float, end: float, count: int) -> npt.NDArray[np.float32]:
    """(16, count): the matrix that averages the rows from `begin` to `end` in 16 equal shares.

    The first and the last share take in the whole of a row that is partly border: black adds nothing to a sum.
    """
    share = (end - begin) / FINGERPRINT_SIDE
    bounds = begin + share * np.arange(FINGERPRINT_SIDE + 1)
    lower, upper = bounds[:-1].copy(), bounds[1:].copy()
    lower[0], upper[-1] = np.floor(begin), np.ceil(end)
    rows = np.arange(count)
    overlap = np.minimum(upper[:, None], rows + 1) - np.maximum(lower[:, None], rows)
    weights: npt.NDArray[np.float32] = (np.clip(overlap, 0, None) / share).astype(np.float32)
    return weights
