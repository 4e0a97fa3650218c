"""Tests of decoding in child processes, of real clips, and of image preprocessing as in open_clip."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image

from service.errors import InvalidInput, Overloaded, Unavailable, Undecodable
from service.media import SUFFIXES, Decoder, Limits, resize_and_crop, sample
from service.media.container import Clip
from service.media.timeline import Timeline
from service.models import Blob, ImageSpec, Sampling
from tests.support.clips import ClipMaker, numbered
from tests.support.processes import ended
from tests.support.wait import until

LIMITS = Limits(max_duration_seconds=600, max_pixels=2_000_000)
SMALL = ImageSpec(32, 32)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("shape", [(48, 64), (100, 37), (20, 20), (33, 500)])
def test_pictures_are_fitted_as_open_clip_fits_them(mode: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (*shape, 3), np.uint8))
    config = PreprocessCfg(size=size, resize_mode=mode, mean=(0, 0, 0), std=(1, 1, 1), fill_color=0)
    expected = (image_transform_v2(config, is_train=False)(image) * 255).round().byte().permute(1, 2, 0).numpy()
    mine = resize_and_crop(image, ImageSpec(*size, resize_mode=mode), image.size)  # type: ignore[arg-type]
    assert np.array_equal(mine, expected)


# --- the decoder process


def test_the_process_answers_as_the_function_does(decoder: Decoder, make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(20))
    there, here = decoder.sample(clip, Sampling(3), SMALL), sample(clip, Sampling(3), SMALL, LIMITS)
    assert np.array_equal(there.pixels, here.pixels)
    assert np.array_equal(there.times, here.times)
    assert there.thumbnails == here.thumbnails
    assert there.probe == here.probe == decoder.probe(clip)


def test_errors_cross_the_pipe(tmp_path: Path, make_clip: ClipMaker) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no")
    decoder = Decoder(Limits(600, 2_000))
    with pytest.raises(Undecodable, match="not a video"):
        decoder.probe(bad)
    with pytest.raises(InvalidInput, match="3,072 pixels"):
        decoder.probe(make_clip("big.mp4", numbered(2)))
    decoder.close()


def test_a_process_that_dies_or_hangs_costs_one_video(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(20))
    decoder = Decoder(Limits(600, 2_000_000, timeout_seconds=3), processes=1)
    assert decoder.probe(clip).width == 64
    (pid,) = decoder.child_pids
    os.kill(pid, signal.SIGSTOP)  # the process hangs without using CPU time, so the clip is not blamed
    started = time.monotonic()
    with pytest.raises(Overloaded, match="too busy"):
        decoder.probe(clip)
    assert time.monotonic() - started < 10
    assert decoder.probe(clip).width == 64
    (pid,) = decoder.child_pids
    os.kill(pid, signal.SIGKILL)  # the process crashes
    until(lambda: ended(pid))
    assert decoder.probe(clip).width == 64
    decoder.close()


def test_a_process_that_dies_before_it_reads_the_request_costs_no_video(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(20))
    decoder = Decoder(Limits(600, 2_000_000), processes=1)
    decoder.probe(clip)
    (pid,) = decoder.child_pids
    os.kill(pid, signal.SIGSTOP)
    killing = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killing.start()
    assert decoder.probe(clip).width == 64
    killing.join()
    assert decoder.child_pids != (pid,)
    decoder.close()


def test_a_clip_that_takes_too_long_is_at_fault(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(256, 640, 360))
    decoder = Decoder(Limits(600, 2_000_000, timeout_seconds=0.5), processes=1)
    decoder.probe(make_clip("b.mp4", numbered(2)))  # the process has started by now
    with pytest.raises(Undecodable, match="longer than"):
        decoder.sample(clip, Sampling(256), ImageSpec(640, 640))
    decoder.close()


def test_bytes_that_lie_elsewhere_are_decoded_as_those_that_are_here(make_clip: ClipMaker, decoder: Decoder) -> None:
    clip = make_clip("a.mp4", [frame for _ in range(4) for frame in numbered(40, 320, 240)])
    data, asked = clip.read_bytes(), []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return data[start : start + length]

    for sampling in (Sampling(5), Sampling(5, 30)):
        there = decoder.sample(Blob(len(data), read), sampling, SMALL)
        here = decoder.sample(clip, sampling, SMALL)
        assert np.array_equal(there.pixels, here.pixels)
        assert there.times.tolist() == here.times.tolist()
        assert there.thumbnails == here.thumbnails
    assert asked

    def gone(*_: int) -> bytes:
        raise Unavailable("the store is away")

    with pytest.raises(Unavailable, match="the store is away"):
        decoder.sample(Blob(len(data), gone), Sampling(5), SMALL)
    with pytest.raises(Undecodable, match="not a video"):
        decoder.sample(Blob(len(data), lambda *_: b""), Sampling(5), SMALL)
    assert decoder.probe(clip).width == 320


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_many_clips_take_no_more_memory_than_two(shared_clips: Path) -> None:
    clip = sorted((shared_clips / "animals").glob("*.mp4"))[0]
    decoder = Decoder(Limits(600, 100_000_000), processes=1)

    def peak_kib() -> int:
        (pid,) = decoder.child_pids
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

    peaks = []
    for _ in range(25):
        decoder.sample(clip, Sampling(10), SMALL)
        peaks.append(peak_kib())
    decoder.close()
    assert peaks[-1] <= 1.1 * peaks[1], peaks


# --- real clips


def _small(frame: VideoFrame) -> np.ndarray:
    return frame.reformat(width=32, height=32, format="gray", interpolation="AREA").to_ndarray().astype(int)


def test_real_clips_give_the_frames_that_reading_in_order_gives(shared_clips: Path) -> None:
    """Check every codec, container, keyframe pattern and edit list, but no damaged clips.

    Decoders differ in how they continue after damage.
    """
    import av

    checked = 0
    for clip in sorted(shared_clips.rglob("*")):
        if clip.suffix not in SUFFIXES or clip.parent.name == "near_duplicates" or "corrupted" in clip.name:
            continue
        with suppress(Undecodable), Clip(clip, Limits(3600, 10**8)) as opened:
            timeline = Timeline.read(opened)
            stamps = timeline.sampled(Sampling(10))
            found = [_small(frame) for _, frame in timeline.frames(opened, stamps)]
            stream = opened.stream.index
            with av.open(str(clip)) as container:
                everything = {frame.pts: _small(frame) for frame in container.decode(container.streams[stream])}
            if clip.name == "eye_makeup.avi":  # PyAV gives wrong time stamps here, but the order is right
                everything = dict(zip(sorted(everything), everything.values(), strict=True))
            assert len(found) == len(stamps), clip.name
            for mine, stamp in zip(found, stamps, strict=True):
                assert np.array_equal(mine, everything[stamp]), (clip.name, stamp)
            checked += 1
    assert checked > 90


def test_a_clip_whose_edit_list_begins_behind_a_keyframe_is_seen_from_there(shared_clips: Path) -> None:
    found = sample(shared_clips / "animals" / "orangutan.mp4", Sampling(10), SMALL, Limits(600, 10**7))
    assert found.probe.duration_seconds == pytest.approx(5.36)
    assert found.times[0] == pytest.approx(0.24)  # not 0.8, as if the clip began with the following keyframe


def test_every_odd_file_is_decoded_or_named(decoder: Decoder, shared_clips: Path) -> None:
    unreadable = {"audio_only_mp4.mp4", "broken_mp4.mp4", "empty_flv.flv", "wrong_file_mp4.mp4"}
    for clip in sorted((shared_clips / "odd_files").iterdir()):
        if clip.suffix == ".txt":
            continue
        if clip.name in unreadable:
            with pytest.raises(Undecodable):
                decoder.sample(clip, Sampling(4), SMALL)
            continue
        found = decoder.sample(clip, Sampling(4), SMALL)
        assert 1 <= len(found.times) <= 4, clip.name
        assert found.times[0] >= 0
