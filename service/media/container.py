"""Open a clip, describe its header, and read its packets and frames in order.

Only the containers and codecs listed here are accepted. `pixels` converts the frames to images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from service.errors import InvalidInput, Undecodable
from service.media.shape import displayed_size, measured_pixel_aspect
from service.media.streams import VIDEO_CODECS, alpha_decoder, choose_stream, photo, photo_kind
from service.models import Probe

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg reads hundreds of formats, most of them rarely tested. Uploaded clips use these.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif"
# Audio is not used, but FFmpeg identifies a container only after it decodes a little of every stream.
_AUDIO_CODECS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,alac,amrnb,amrwb,eac3,flac,libopus,mp1,mp1float,mp2,"
    "mp2float,mp3,mp3float,nellymoser,opus,pcm_alaw,pcm_f32le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,"
    "pcm_s32le,pcm_u8,speex,vorbis,wmapro,wmav1,wmav2"
)
_PROBE_PACKETS = 250


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what one clip may cost.

    `max_pixels` limits the pixels of one frame. `max_decoded_pixels` limits the pixels of all frames that must be
    decoded to sample a clip. `timeout_seconds` limits one whole request to the decoder.
    """

    max_duration_seconds: float
    max_pixels: int
    max_decoded_pixels: int = 1 << 35  # nine minutes of 1080p without a keyframe, ten seconds of work
    timeout_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Header:
    """Properties that a container declares before any frame is decoded.

    `pixel_aspect` is the width of a pixel divided by its height.
    """

    media_type: str
    codec: str
    frames_per_second: float | None
    pixel_aspect: float
    duration_seconds: float | None

    @classmethod
    def read(cls, container: InputContainer, stream: VideoStream) -> Header:
        """Read the header of an open container.

        `duration_seconds` is the stream's duration if it declares one, otherwise the container's.
        """
        aspect, rate = stream.sample_aspect_ratio, stream.average_rate
        seconds = container.duration / 1_000_000 if container.duration else None
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        return cls(
            media_type=_media_type(container, stream),
            codec=stream.codec_context.name,
            frames_per_second=float(rate) if rate else None,
            pixel_aspect=float(aspect) if aspect and aspect > 0 else 1.0,
            duration_seconds=seconds,
        )

    def probe(self, displayed_size: tuple[int, int]) -> Probe:
        """Return the complete probe: the header, with the displayed (width, height) of a frame."""
        width, height = displayed_size
        return Probe(
            media_type=self.media_type,
            codec=self.codec,
            width=width,
            height=height,
            duration_seconds=self.duration_seconds,
            frames_per_second=self.frames_per_second,
        )


class Clip:
    """Open clip file, and the one video stream that is read from it.

    Use as a context manager. A file object passed as `source` is closed with the clip. `threads` is the number of
    decoder threads; 0 means one per core.

    Raises:
        Undecodable: If the file is not a video.
        InvalidInput: If the clip exceeds `limits`.
    """

    def __init__(self, source: Path | BinaryIO, limits: Limits, threads: int = 0) -> None:
        self._file = source.open("rb") if isinstance(source, Path) else source
        self._threads = threads
        self._aspect_changes = False  # whether frames differ in the aspect of their pixels
        self._stream_index: int | None = None  # of the stream that was chosen when the clip was opened first
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise
        try:
            self.header = Header.read(self.container, self.stream)
            _check(self.stream, self.header.duration_seconds, limits)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the container and the file."""
        self.container.close()
        self._file.close()

    @property
    def has_sound(self) -> bool:
        """Whether the container declares a stream of audio. Silence in that stream counts as sound."""
        return bool(self.container.streams.audio)

    def reopen(self) -> None:
        """Reopen the container at its start. Unlike a seek, this works with every container."""
        self.container.close()
        self._open()

    def _open(self) -> None:
        self.container = _open_container(self._file)
        try:
            if self._stream_index is None:
                stream, read = choose_stream(self.container)
                self._stream_index = stream.index
                if read:
                    self.container.close()
                    self.container = _open_container(self._file)
            self.stream = next(one for one in self.container.streams.video if one.index == self._stream_index)
        except BaseException:
            self.container.close()
            raise
        self._decoder = alpha_decoder(self.stream) or self.stream.codec_context
        self._decoder.thread_type = "AUTO"
        self._decoder.thread_count = self._threads

    def seek(self, stamp: int) -> bool:
        """Seek to the last keyframe at or before a time stamp; return whether the container can seek.

        `stamp` is in units of the stream's time base. The position is only as exact as the container's index.
        """
        import av

        self._decoder.flush_buffers()
        try:
            self.container.seek(stamp, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Yield every packet from the current position in decoding order, then None.

        A read error ends the clip like the end of the file does, because the frames before it can still be sampled.
        """
        import av

        following = self.container.demux(self.stream)
        while True:
            try:
                packet = next(following)
            except (StopIteration, av.error.FFmpegError):
                break
            if packet.size:  # the empty packet at the end becomes the None below
                yield packet
        yield None

    def decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Decode one packet; return the frames that become available.

        None flushes the decoder and returns all remaining frames. A damaged packet returns no frames.
        """
        import av

        try:
            return self._decoder.decode(packet)
        except av.error.FFmpegError:
            return []

    def displayed_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Return the displayed (width, height) of a frame, with the aspect of its pixels and its rotation.

        Call before the next frame is decoded.
        """
        aspect = self.header.pixel_aspect
        # MP4 and Matroska declare one aspect for the whole stream, which players use. In other containers, the decoder
        # has the aspect of the frame that it decoded last, a few frames ahead of the one that it returned.
        if self.container.format.name.split(",")[0] not in ("mov", "matroska"):
            latest = self._decoder.sample_aspect_ratio
            self._aspect_changes = self._aspect_changes or (float(latest) if latest else 1.0) != aspect
        return displayed_size(frame, measured_pixel_aspect(frame) if self._aspect_changes else aspect)

    def read(self, max_packets: int | None = None) -> Iterator[VideoFrame]:
        """Yield every frame from the current position in display order.

        Stop without flushing the decoder once `max_packets` packets were read.
        """
        for number, packet in enumerate(self.packets()):
            if max_packets is not None and number >= max_packets:
                return
            yield from self.decode(packet)


def probe(source: Path | BinaryIO, limits: Limits) -> Probe:
    """Return the properties of a clip, after decoding its first frame.

    Raises:
        Undecodable: If the file is not a video, or no frame in its first 250 packets can be decoded.
        InvalidInput: If the clip exceeds `limits`.
    """
    with Clip(source, limits) as clip:
        frame = next(clip.read(_PROBE_PACKETS), None)
        if frame is None:
            raise no_frame()
        return clip.header.probe(clip.displayed_size(frame))


def no_frame() -> Undecodable:
    """Return the error for a clip without a decodable frame."""
    return Undecodable("the file has a video stream, but none of its frames can be decoded")


def _open_container(file: BinaryIO) -> InputContainer:
    import av

    if file.seek(0, os.SEEK_END) == 0:
        raise Undecodable("the file is empty")
    file.seek(0)
    codecs = f"{VIDEO_CODECS},{_AUDIO_CODECS}"
    # Old tools write metadata in any encoding. PyAV 19 keeps such bytes as surrogates; older versions need the option.
    old = int(av.__version__.split(".")[0]) < 19
    encoding: dict[str, Any] = {"metadata_errors": "surrogateescape"} if old else {}
    try:
        opened: InputContainer = av.open(
            file,
            "r",
            **encoding,
            # Detect the format from the bytes, never from the file name. FFmpeg reads through our file object. The
            # empty protocol list keeps it from opening anything else that a clip refers to.
            container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "", "codec_whitelist": codecs},
        )
    except (av.error.FFmpegError, ValueError) as error:
        file.seek(0)
        if kind := photo_kind(file.read(12)):
            raise photo(kind) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise Undecodable(f"the file is not a video that can be opened: {reason}") from error
    return opened


def check_frame(frame: VideoFrame, limits: Limits) -> None:
    """Raise InvalidInput if a frame exceeds `limits`."""
    if frame.width * frame.height > limits.max_pixels:  # a stream may change its frame size midway
        raise InvalidInput(
            "file", f"a frame has {frame.width * frame.height:,} pixels; at most {limits.max_pixels:,} are allowed"
        )


def _check(stream: VideoStream, seconds: float | None, limits: Limits) -> None:
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > limits.max_pixels:
        raise InvalidInput("file", f"a frame has {pixels:,} pixels; at most {limits.max_pixels:,} are allowed")
    if seconds is not None and seconds > limits.max_duration_seconds:
        raise InvalidInput(
            "file", f"the clip lasts {seconds:.1f} s; at most {limits.max_duration_seconds:.0f} s are allowed"
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
