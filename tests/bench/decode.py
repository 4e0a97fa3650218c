"""Benchmark decoding: ten evenly spaced frames of every clip, by this project's sampler and by other libraries.

    python tests/bench/decode.py FOLDER [--repeat N] [--skip-long]

FOLDER is `<category>/<clip>`. Every method gives the same frames as RGB arrays in the clip's own size, on all cores:

    ours        time stamps first, then only the frames that must be decoded (`service.media.timeline`)
    opencv      OpenCV, all frames in order up to the last requested frame, converting only the requested frames
    pyav        the same with PyAV and all threads of FFmpeg
    torchcodec  `VideoDecoder.get_frames_at` with its exact seek mode and its best number of threads

The methods take turns on each clip. A method's time is the sum over the clips of its fastest turn. A clip counts only
if all methods give the same frames; otherwise the clip and the differing methods are printed. Then a clip of ten
minutes at 1080p with a keyframe every two seconds, made from FOLDER's first clip, is compared with reading that clip
from end to end. The last line is JSON. The methods opencv and torchcodec need opencv-python-headless, and torchcodec
with FFmpeg's libraries; a missing package is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from service.errors import ReelsError
from service.media import Limits, Pixels, sample
from service.media.container import Clip
from service.media.timeline import Timeline
from service.models import ImageSpec, Sampling
from service.operations.folder_scan import scan

LIMITS = Limits(max_duration_seconds=36_000, max_pixels=8192 * 4352)
TEN = Sampling(10)
SIDE = 16  # pixels: frames are compared in small size, because each method converts colours differently

Way = Callable[[Path, list[int]], list[Pixels]]


def ours(path: Path, _: list[int]) -> list[Pixels]:
    """Decode the sampled frames from the file alone; choosing the frames is part of the time."""
    with Clip(path, LIMITS) as clip:
        timeline = Timeline.read(clip)
        return [frame.to_ndarray(format="rgb24") for _, frame in timeline.frames(clip, timeline.sampled(TEN))]


def keyframes(path: Path, _: list[int]) -> list[Pixels]:
    """Decode the keyframes nearest to the sampled frames, which is faster."""
    with Clip(path, LIMITS) as clip:
        timeline = Timeline.read(clip)
        stamps = timeline.sampled(TEN, keyframes=True)
        return [frame.to_ndarray(format="rgb24") for _, frame in timeline.frames(clip, stamps)]


def opencv(path: Path, indices: list[int]) -> list[Pixels]:
    """Decode with OpenCV, reading all frames in order up to the last requested index."""
    import cv2

    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    wanted, found = set(indices), []
    for number in range(indices[-1] + 1):
        if not video.grab():
            break
        if number in wanted:
            found.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    video.release()
    return found


def pyav(path: Path, indices: list[int]) -> list[Pixels]:
    """Decode with PyAV and FFmpeg's threads, reading all frames in order up to the last requested index."""
    wanted, found = set(indices), []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
                if number == indices[-1]:
                    break
    return found


def torchcodec(threads: int) -> Way:
    """Return a method that decodes by index with torchcodec and this number of threads."""

    def way(path: Path, indices: list[int]) -> list[Pixels]:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(str(path), num_ffmpeg_threads=threads, dimension_order="NHWC")
        return list(decoder.get_frames_at(indices).data.numpy())

    return way


def small(pictures: list[Pixels]) -> Pixels:
    """Reduce images of any size to grey: (N, 16, 16) uint8."""
    from PIL import Image

    grey = [Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures]
    return np.array([np.asarray(one) for one in grey]).reshape(-1, SIDE, SIDE)


def same(some: list[Pixels], others: list[Pixels]) -> bool:
    """Return whether two methods gave the same frames, in any of four rotations.

    The mean difference must be smaller than 4 of 255, which is more than colour conversions differ.
    """
    if len(some) != len(others) or not some:
        return False
    ways_up = [[np.rot90(picture, turns) for picture in others] for turns in range(4)]
    return min(float(np.abs(small(some).astype(int) - small(one)).mean()) for one in ways_up) < 4


def chosen(path: Path) -> list[int]:
    """Return the indices of the sampled frames among all frames."""
    with Clip(path, LIMITS) as clip:
        timeline = Timeline.read(clip)
    return [int(place) for place in np.searchsorted(timeline.stamps, timeline.sampled(TEN))]


def available(ways: dict[str, Way], clip: Path) -> dict[str, Way]:
    """Return the methods whose packages are installed; report the others."""
    found = {}
    for name, way in ways.items():
        try:
            way(clip, chosen(clip))
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: not measured, {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            found[name] = way
    return found


def short_clips(folder: Path, repeat: int) -> dict[str, object]:
    """Measure all clips of a folder with each method in turn; return the figures."""
    clips = [entry.path for entry in scan(folder)]
    seconds: dict[str, float] = {}
    counted, frames, differing = 0, 0, []
    ways = available({"ours": ours, "opencv": opencv, "pyav": pyav, "torchcodec": torchcodec(0)}, clips[0])
    if "torchcodec" in ways:
        ways["torchcodec_1"] = torchcodec(1)
    for clip in clips:
        try:
            indices = chosen(clip)
        except ReelsError:
            continue
        best: dict[str, float] = {}
        results: dict[str, list[Pixels]] = {}
        for _ in range(repeat):
            for name, way in ways.items():
                started = time.perf_counter()
                try:
                    results[name] = way(clip, indices)
                except Exception as error:  # each library raises its own errors
                    results[name] = []
                    print(f"{clip.name}: {name} failed: {str(error).splitlines()[0]}", file=sys.stderr)
                best[name] = min(best.get(name, np.inf), time.perf_counter() - started)
        wrong = [name for name in results if not same(results["ours"], results[name])]
        if wrong:
            differing.append(clip.name)
            print(f"{clip.name}: {', '.join(wrong)} gave other frames, or none", file=sys.stderr)
            continue
        counted, frames = counted + 1, frames + len(indices)
        for name, value in best.items():
            seconds[name] = seconds.get(name, 0.0) + value
        if best["ours"] > 1.2 * min(best.values()):
            print(f"{clip.name}: { {name: round(value, 3) for name, value in best.items()} }", file=sys.stderr)
    started = time.perf_counter()
    for clip in clips:
        try:
            sample(clip, TEN, ImageSpec(224, 224), LIMITS)
        except ReelsError:
            continue
    whole = time.perf_counter() - started
    others = min(value for name, value in seconds.items() if name != "ours")
    return {
        "clips": counted,
        "frames": frames,
        "clips_left_out_because_ways_differ": len(differing),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ours_to_best_other": round(seconds["ours"] / others, 3),
        "seconds_with_model_pictures_and_jpegs_all_clips": round(whole, 2),
    }


def long_clip(source: Path, scratch: Path, minutes: int = 10) -> Path:
    """Make a long clip at 1080p: encode 20 seconds with a keyframe every two seconds, and repeat them."""
    part, whole = scratch / "part.mp4", scratch / "long.mp4"
    seconds, rate = 20, 30
    with av.open(str(part), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": str(2 * rate), "keyint_min": str(2 * rate), "sc_threshold": "0"}
        for number, frame in zip(range(seconds * rate), endless(source), strict=False):
            scaled = frame.reformat(width=1920, height=1080, format="yuv420p")
            scaled.pts, scaled.time_base = number, Fraction(1, rate)
            out.mux(stream.encode(scaled))
        out.mux(stream.encode(None))
    with av.open(str(whole), "w") as out:
        target, offset = None, 0
        for _ in range(minutes * 60 // seconds):
            with av.open(str(part)) as inside:
                origin = inside.streams.video[0]
                target = target or out.add_stream_from_template(origin)
                for packet in inside.demux(origin):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, target
                    out.mux(packet)
                offset += int(seconds / origin.time_base)
    return whole


def endless(source: Path) -> Iterator[av.VideoFrame]:
    """Yield a clip's frames repeatedly, without end."""
    while True:
        with av.open(str(source)) as container:
            yield from container.decode(video=0)


def timed(way: Way, path: Path, indices: list[int]) -> tuple[float, list[Pixels]]:
    """Return the seconds that the method took, and its frames."""
    started = time.perf_counter()
    found = way(path, indices)
    return time.perf_counter() - started, found


def long_clips(source: Path) -> dict[str, object]:
    """Compare the sampler with reading to the end, on a clip of ten minutes; return the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        clip = long_clip(source, Path(scratch))
        indices = chosen(clip)
        mine = [timed(ours, clip, indices) for _ in range(3)]
        keys = [timed(keyframes, clip, indices) for _ in range(3)]
        sequential, theirs = timed(pyav, clip, indices)
        return {
            "long_clip": "10 min, 1920x1080, 30 frames/s, a keyframe every 2 s",
            "long_seconds": {
                "ours": round(min(one for one, _ in mine), 2),
                "keyframes": round(min(one for one, _ in keys), 2),
                "pyav": round(sequential, 2),
            },
            "long_same_frames": same(mine[0][1], theirs),
            "long_ours_to_sequential": round(min(one for one, _ in mine) / sequential, 4),
        }


def main() -> None:
    """Run both measurements and print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--skip-long", action="store_true", help="leave the ten minutes out")
    given = arguments.parse_args()
    av.logging.set_level(None)
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    result = {"benchmark": "decode", "cores": os.cpu_count(), **short_clips(given.folder, given.repeat)}
    if not given.skip_long:
        result |= long_clips(scan(given.folder)[0].path)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
