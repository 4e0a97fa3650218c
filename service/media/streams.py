"""Choose the video stream of a container that a player would show.

A container may hold several: camera angles, a cover, a preview, thumbnails of chapters.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from service.errors import Undecodable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

# FFmpeg reads hundreds of codecs, most of them rarely tested. Uploaded clips use these.
VIDEO_CODECS = (
    "av1,cinepak,dnxhd,dvvideo,ffv1,ffvhuff,flv,gif,h263,h264,hevc,huffyuv,jpeg2000,libdav1d,libvpx,libvpx-vp9,mjpeg,"
    "mpeg1video,mpeg2video,mpeg4,msmpeg4,msmpeg4v1,msmpeg4v2,png,prores,qtrle,rawvideo,svq1,svq3,theora,utvideo,vc1,"
    "vp6,vp6f,vp8,vp9,vvc,wmv1,wmv2,wmv3"
)
_AVIF_BRANDS = frozenset(("avif", "avis"))
_PHOTO_BRANDS = _AVIF_BRANDS | frozenset(("heic", "heim", "heis", "heix", "hevc", "hevx", "mif1", "mif2", "msf1"))
_PHOTO_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
}
_PICTURES = 0x400 | 0x800  # AV_DISPOSITION_ATTACHED_PIC, _TIMED_THUMBNAILS: covers and thumbnails are not videos
_DEFAULT = 0x1  # AV_DISPOSITION_DEFAULT
_PART = 0x80000 | 0x100000  # AV_DISPOSITION_DEPENDENT, _STILL_IMAGE: a layer of another stream, a still
_PICTURE_CODECS = ("mjpeg", "png", "jpeg2000", "gif")  # beside a stream in another codec: a preview or thumbnails
_MOVING_PACKETS = 2  # a stream with this many packets moves
_COUNTED_PACKETS = 500  # 10 to 20 seconds of two streams; a stream without a second packet by then is a still


def choose_stream(container: InputContainer) -> tuple[VideoStream, bool]:
    """Return the video stream that players show, and whether packets were read to find it.

    Moving streams come before stills. A player follows the default flag first, but a library of videos has no use for
    a still beside a video. Streams of pictures, such as previews in Motion JPEG, come after streams of a video codec.
    Of the rest, the one with the default flag wins, then the one with most pixels, then the longest, then the first.

    Packets are read only if there are several streams whose number of frames the header does not declare. The position
    of the container is then unknown.

    Raises:
        Undecodable: If no stream is a video in a codec that is accepted, or the file is a photo.
    """
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not int(stream.disposition) & _PICTURES
    ]
    supported = [stream for stream in streams if stream.codec_context.name in VIDEO_CODECS.split(",")]
    brands = _brands(container)
    if brands & _PHOTO_BRANDS and not any(stream.frames >= _MOVING_PACKETS for stream in supported):
        # The images of such a file, or the tiles of one image, are streams of one frame.
        raise photo("AVIF" if brands & _AVIF_BRANDS else "HEIC")
    if not supported:
        if streams:
            raise Undecodable(f"the video codec {streams[0].codec_context.name} is not supported")
        kinds = sorted({stream.type for stream in container.streams})
        raise Undecodable(f"the file has no video stream, only {', '.join(kinds) or 'unknown data'}")
    if len(supported) == 1:
        return supported[0], False
    moving = {stream.index for stream in supported if stream.frames >= _MOVING_PACKETS}
    if uncounted := [stream for stream in supported if stream.frames == 0]:
        moving |= _moving(container, uncounted)
    return max(supported, key=lambda stream: (stream.index in moving, *_rank(stream))), bool(uncounted)


def _brands(container: InputContainer) -> set[str]:
    """Return the kinds of file that a container of the MP4 family says it is; empty for others."""
    declared = container.metadata.get("major_brand", "") + container.metadata.get("compatible_brands", "")
    return {declared[start : start + 4] for start in range(0, len(declared), 4)}


def photo(kind: str) -> Undecodable:
    """Return the error for a photo; `kind` is its format."""
    return Undecodable(
        f"the file is a photo ({kind}), not a video; of a motion photo or Live Photo, only the video part is accepted"
    )


def photo_kind(start: bytes) -> str | None:
    """Return the image format that the first 12 bytes of a file show; None if it is none."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return next((kind for signature, kind in _PHOTO_SIGNATURES.items() if start.startswith(signature)), None)


def alpha_decoder(stream: VideoStream) -> VideoCodecContext | None:
    """Return another decoder for a stream of VP8 or VP9 with an alpha channel, and None for all other streams.

    FFmpeg's own decoders ignore the alpha channel, which is a second stream inside the packets. Browsers show it.
    """
    from av.video.codeccontext import VideoCodecContext

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return None
    decoder = VideoCodecContext.create(name, "r")
    assert isinstance(decoder, VideoCodecContext)
    return decoder


def _rank(stream: VideoStream) -> tuple[bool, bool, bool, int, float, int]:
    disposition = int(stream.disposition)
    pixels = stream.codec_context.width * stream.codec_context.height
    whole, video = not disposition & _PART, stream.codec_context.name not in _PICTURE_CODECS
    return whole, video, bool(disposition & _DEFAULT), pixels, _seconds(stream), -stream.index


def _seconds(stream: VideoStream) -> float:
    """Return the declared duration in seconds; 0 if there is none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska declares it as text: 00:00:02.000000000, and the tag may end in a language.
    text = next((value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")), "")
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _moving(container: InputContainer, streams: list[VideoStream]) -> set[int]:
    """Return the indices of the streams with more than one packet, whose header does not declare the number of frames.

    Headers of most containers do not.
    """
    import av

    counts: Counter[int] = Counter()
    try:
        for number, packet in enumerate(container.demux(streams)):
            if packet.size:
                counts[packet.stream.index] += 1
            if number >= _COUNTED_PACKETS or all(counts[stream.index] >= _MOVING_PACKETS for stream in streams):
                break
    except av.error.FFmpegError:
        pass  # a damaged clip is judged by the packets before the damage
    return {index for index, count in counts.items() if count >= _MOVING_PACKETS}
