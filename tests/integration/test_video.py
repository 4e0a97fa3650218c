"""Decoding: which frames, when, which way up, and what strangers send."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.domain import Blob, Picture, Sampling
from service.errors import InvalidInput, Overloaded, Unavailable, Undecodable
from service.video import SUFFIXES, Decoder, Limits, choose, fit, probe, sample
from service.video.container import Clip
from service.video.timeline import Timeline
from tests.support.clips import ClipMaker, numbered, quarters
from tests.support.wait import until

LIMITS = Limits(max_duration_seconds=600, max_pixels=2_000_000)
SMALL = Picture(32, 32)


def _levels(pixels: np.ndarray, count: int) -> list[int]:
    """Which of `count` numbered frames each picture is."""
    return [round((float(picture.mean()) - 20) / 200 * (count - 1)) for picture in pixels]


# --- which frames


@given(
    gaps=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    wanted=st.integers(1, 80),
    interval=st.one_of(st.none(), st.integers(1, 20)),
)
def test_the_choice_is_ascending_inside_and_as_long_as_can_be(
    gaps: list[int], wanted: int, interval: int | None
) -> None:
    times = np.cumsum([0, *gaps]).astype(float)[:-1]
    chosen = choose(times, float(sum(gaps)), Sampling(wanted, interval))
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < len(times)
    if interval is None:
        assert len(chosen) == min(wanted, len(times))
    else:
        assert chosen.tolist() == list(range(0, len(times), interval))[:wanted]


def test_even_frames_are_the_middles_of_equal_shares() -> None:
    assert choose(np.arange(100.0), 100.0, Sampling(10)).tolist() == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    # Nine frames in the first second, one that stands for the nine seconds after it.
    assert choose(np.array([*np.arange(9) / 9, 1.0]), 10.0, Sampling(2)).tolist() == [8, 9]


def test_frames_are_exact_and_know_their_time(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(40))
    found = sample(clip, Sampling(4), SMALL, LIMITS)
    assert _levels(found.pixels, 40) == [5, 15, 25, 35]
    np.testing.assert_allclose(found.times, [0.5, 1.5, 2.5, 3.5])
    assert found.probe.duration_seconds == pytest.approx(4.0)
    assert (found.probe.codec, found.probe.media_type) == ("h264", "video/mp4")


def test_every_nth_frame_from_the_start(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(40))
    found = sample(clip, Sampling(5, 3), SMALL, LIMITS)
    assert _levels(found.pixels, 40) == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("bframes", ["0", "3"])
def test_seeking_gives_the_same_frames_as_reading(make_clip: ClipMaker, bframes: str) -> None:
    options = {"qp": "0", "g": "10", "bf": bframes, "sc_threshold": "0"}
    clip = make_clip("a.mp4", numbered(200), options=options)
    found = sample(clip, Sampling(6), SMALL, LIMITS)
    expected = [16, 50, 83, 116, 150, 183]
    np.testing.assert_allclose(found.times * 10, expected, atol=1e-3)
    # 200 levels of grey in 8 bits of luma: one off is rounding.
    np.testing.assert_allclose(_levels(found.pixels, 200), expected, atol=1)


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_keyframes_are_the_nearest_ones_and_fewer_where_there_are_fewer(make_clip: ClipMaker, bframes: str) -> None:
    options = {"qp": "0", "g": "20", "bf": bframes, "sc_threshold": "0"}
    clip = make_clip("a.mp4", numbered(200), options=options)
    found = sample(clip, Sampling(4), SMALL, LIMITS, keyframes=True)
    np.testing.assert_allclose(found.times, [2.0, 8.0, 12.0, 18.0], atol=1e-3)  # of 25, 75, 125 and 175 tenths
    assert len(sample(clip, Sampling(30), SMALL, LIMITS, keyframes=True).times) == 10
    assert len(sample(clip, Sampling(30), SMALL, LIMITS).times) == 30


def test_frames_that_are_not_wanted_are_not_decoded(make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"qp": "10", "g": "50", "x264-params": "bframes=3:b-adapt=0:b-pyramid=none:scenecut=0:open-gop=0"}
    clip = make_clip("a.mp4", numbered(200), options=options)
    seen: list[int] = []
    decode = Clip.decode

    def counting(self: Clip, packet: object) -> list:
        frames = decode(self, packet)  # type: ignore[arg-type]
        seen.extend(frame.pts for frame in frames)
        return frames

    monkeypatch.setattr(Clip, "decode", counting)
    found = sample(clip, Sampling(4), SMALL, LIMITS)
    np.testing.assert_allclose(found.times * 10, [25, 75, 125, 175], atol=1e-3)
    # Each lies in the middle of a group of 50. Of the 26 frames up to it about a quarter is referred to.
    assert len(seen) < 4 * 26 / 2


def test_a_short_clip_gives_the_frames_it_has(make_clip: ClipMaker) -> None:
    assert len(sample(make_clip("a.mp4", numbered(3)), Sampling(10), SMALL, LIMITS).times) == 3
    assert sample(make_clip("b.mp4", numbered(1)), Sampling(10), SMALL, LIMITS).times.tolist() == [0.0]


def test_a_varying_frame_rate_is_sampled_in_time(make_clip: ClipMaker) -> None:
    # Ten frames in one second, then ten in ten seconds.
    stamps = [*range(10), *range(10, 110, 10)]
    found = sample(make_clip("a.mkv", numbered(20), stamps=stamps), Sampling(5), SMALL, LIMITS)
    assert (np.diff(found.times) >= 1.5).all()


def test_times_begin_at_zero_wherever_the_clip_does(make_clip: ClipMaker) -> None:
    clip = make_clip("a.ts", numbered(10), stamps=list(range(500, 510)), container_format="mpegts")
    found = sample(clip, Sampling(2), SMALL, LIMITS)
    np.testing.assert_allclose(found.times, [0.2, 0.7], atol=0.11)
    assert _levels(found.pixels, 10) == [2, 7]


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mp4", "libx265", "yuv420p10le"),
        ("a.mkv", "libx264", "yuv444p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "libx264", "yuvj420p"),
        ("a.mkv", "ffv1", "gray"),
        ("a.mkv", "ffv1", "bgra"),
    ],
)
def test_codecs_and_pixel_formats(make_clip: ClipMaker, name: str, codec: str, pixel_format: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"qscale": "2"}
    clip = make_clip(name, numbered(12), codec=codec, pixel_format=pixel_format, options=options)
    found = sample(clip, Sampling(4), SMALL, LIMITS)
    assert len(found.times) == 4
    means = found.pixels.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [20 + 200 * n / 11 for n in (1, 4, 7, 10)], atol=6)


def test_odd_sizes_and_one_pixel(make_clip: ClipMaker) -> None:
    for height, width in ((81, 121), (1, 1), (3, 200)):
        clip = make_clip(f"{width}.mp4", numbered(4, width, height), pixel_format="yuv444p")
        found = sample(clip, Sampling(2), SMALL, LIMITS)
        assert found.pixels.shape == (2, 32, 32, 3)
        assert Image.open(io.BytesIO(found.jpegs[0])).size == (width, height)


def test_metadata_in_another_encoding(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(4), metadata={"title": "caption here"})
    clip.write_bytes(clip.read_bytes().replace(b"caption here", b"caption \xff\xfe\xe9\xe8"))
    assert len(sample(clip, Sampling(2), SMALL, LIMITS).times) == 2


# --- which way up, which shape, which colours


def _corners(picture: np.ndarray) -> str:
    """The colours at upper left, upper right, lower left, lower right, as letters."""
    height, width = picture.shape[:2]
    letters = []
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            red, green, blue = (int(value) for value in picture[y, x])
            if min(red, green, blue) > 180:
                letters.append("w")
            else:
                letters.append("rgb"[int(np.argmax([red, green, blue]))])
    return "".join(letters)


@pytest.mark.parametrize(("rotation", "corners"), [(0, "rgbw"), (90, "gwrb"), (180, "wbgr"), (270, "brwg")])
def test_the_display_matrix_turns_the_picture(make_clip: ClipMaker, rotation: int, corners: str) -> None:
    """Rotations count counterclockwise, as FFmpeg's av_display_rotation_get does."""
    clip = make_clip("a.mp4", [quarters()] * 3, rotation=rotation, pixel_format="yuv444p")
    found = sample(clip, Sampling(1), SMALL, LIMITS)
    picture = np.asarray(Image.open(io.BytesIO(found.jpegs[0])))
    assert _corners(picture) == corners
    expected = (64, 48) if rotation % 180 == 0 else (48, 64)
    assert (found.probe.width, found.probe.height) == expected == picture.shape[1::-1]


def test_rectangular_pixels_are_stretched(make_clip: ClipMaker) -> None:
    found = sample(make_clip("a.mp4", [quarters()] * 2, aspect=Fraction(3, 2)), Sampling(1), SMALL, LIMITS)
    assert (found.probe.width, found.probe.height) == (96, 48)
    assert Image.open(io.BytesIO(found.jpegs[0])).size == (96, 48)


def test_hdr_is_brought_down_to_what_a_screen_shows(make_clip: ClipMaker) -> None:
    # PQ code 0.58 is paper white (203 nits): shown as it is, it would be a middle grey.
    grey = [np.full((48, 64, 3), 148, np.uint8)] * 3
    plain = sample(make_clip("sdr.mp4", grey), Sampling(1), SMALL, LIMITS)
    hdr = sample(make_clip("hdr.mp4", grey, transfer=16), Sampling(1), SMALL, LIMITS)
    hlg = sample(
        make_clip("hlg.mp4", [np.full((48, 64, 3), 191, np.uint8)] * 3, transfer=18), Sampling(1), SMALL, LIMITS
    )
    assert abs(float(plain.pixels.mean()) - 148) < 4
    assert float(hdr.pixels.mean()) > 235
    assert float(hlg.pixels.mean()) > 235


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("shape", [(48, 64), (100, 37), (20, 20), (33, 500)])
def test_pictures_are_fitted_as_open_clip_fits_them(mode: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (*shape, 3), np.uint8))
    config = PreprocessCfg(size=size, resize_mode=mode, mean=(0, 0, 0), std=(1, 1, 1), fill_color=0)
    expected = (image_transform_v2(config, is_train=False)(image) * 255).round().byte().permute(1, 2, 0).numpy()
    mine = fit(image, Picture(*size, resize_mode=mode), image.size)  # type: ignore[arg-type]
    assert np.array_equal(mine, expected)


# --- what strangers send


@pytest.mark.parametrize("kind", ["empty", "text", "noise", "playlist", "concat", "song"])
def test_what_is_not_a_video_is_refused_with_a_reason(kind: str, tmp_path: Path, make_clip: ClipMaker) -> None:
    path = tmp_path / "clip.mp4"
    secret = make_clip("secret.mp4", numbered(3))
    contents = {
        "empty": b"",
        "text": b"not a video, whatever its name says\n" * 50,
        "noise": np.random.default_rng(0).bytes(20_000),
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
    }
    if kind == "song":
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            frame = av.AudioFrame(format="fltp", layout="stereo", samples=1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        path.write_bytes(contents[kind])
    with pytest.raises(Undecodable) as caught:
        probe(path, LIMITS)
    words = {"empty": "empty", "song": "no video stream, only audio"}.get(kind, "not a video that can be opened")
    assert words in str(caught.value)


def test_a_truncated_clip_gives_what_is_left_or_a_reason(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mkv", numbered(60))
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 2 // 3])
    found = sample(clip, Sampling(5), SMALL, LIMITS)
    assert 1 <= len(found.times) <= 5
    header_only = make_clip("b.mp4", numbered(60))  # the index of an mp4 stands at its end
    header_only.write_bytes(header_only.read_bytes()[:400])
    with pytest.raises(Undecodable):
        sample(header_only, Sampling(5), SMALL, LIMITS)


def test_damaged_packets_cost_their_frames_only(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(60), options={"g": "5", "qp": "10"})
    data = bytearray(clip.read_bytes())
    for place in range(len(data) // 4, len(data) // 2, 97):
        data[place] ^= 0xFF
    clip.write_bytes(data)
    found = sample(clip, Sampling(10), SMALL, LIMITS)
    assert len(found.times) >= 5
    assert (np.diff(found.times) > 0).all()


def test_limits_are_named(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(30))
    with pytest.raises(InvalidInput, match=r"lasts 3\.0 s; at most 2 s"):
        probe(clip, Limits(2, 2_000_000))
    with pytest.raises(InvalidInput, match="3,072 pixels"):
        probe(clip, Limits(600, 3_000))


# --- the process


def test_the_process_answers_as_the_function_does(decoder: Decoder, make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(20))
    there, here = decoder.sample(clip, Sampling(3), SMALL), sample(clip, Sampling(3), SMALL, LIMITS)
    assert np.array_equal(there.pixels, here.pixels)
    assert np.array_equal(there.times, here.times)
    assert there.jpegs == here.jpegs
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
    os.kill(pid, signal.SIGSTOP)  # hangs, and computes nothing: who can say whose fault it is?
    started = time.monotonic()
    with pytest.raises(Overloaded, match="too busy"):
        decoder.probe(clip)
    assert time.monotonic() - started < 10
    assert decoder.probe(clip).width == 64
    (pid,) = decoder.child_pids
    os.kill(pid, signal.SIGKILL)  # crashes
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text())
    assert decoder.probe(clip).width == 64
    decoder.close()


def test_a_clip_that_takes_too_long_is_at_fault(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(256, 640, 360))
    decoder = Decoder(Limits(600, 2_000_000, timeout_seconds=0.5), processes=1)
    decoder.probe(make_clip("b.mp4", numbered(2)))  # started by now
    with pytest.raises(Undecodable, match="longer than"):
        decoder.sample(clip, Sampling(256), Picture(640, 640))
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
        assert there.jpegs == here.jpegs
    assert asked

    def gone(*_: int) -> bytes:
        raise Unavailable("the store is away")

    with pytest.raises(Unavailable, match="the store is away"):
        decoder.sample(Blob(len(data), gone), Sampling(5), SMALL)
    with pytest.raises(Undecodable, match="not a video"):
        decoder.sample(Blob(len(data), lambda *_: b""), Sampling(5), SMALL)
    assert decoder.probe(clip).width == 320


def test_a_crash_in_the_middle_is_that_videos_failure(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(20))
    decoder = Decoder(Limits(600, 2_000_000), processes=1)
    decoder.probe(clip)
    (pid,) = decoder.child_pids
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(Undecodable, match=r"killed \(SIGKILL\)"):
        decoder.probe(clip)
    assert decoder.probe(clip).width == 64
    decoder.close()


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
    """Whatever the codec, the container, its keyframes and its edit list. What is damaged is left out: there, each
    library has its own way of going on."""
    import av

    checked = 0
    for clip in sorted(shared_clips.rglob("*")):
        if clip.suffix not in SUFFIXES or clip.parent.name == "near_duplicates" or "corrupted" in clip.name:
            continue
        with suppress(Undecodable), Clip(clip, Limits(3600, 10**8)) as opened:
            timeline = Timeline.read(opened)
            stamps = timeline.sampled(Sampling(10))
            found = [_small(frame) for _, frame in timeline.frames(opened, stamps)]
            with av.open(str(clip)) as container:
                everything = {frame.pts: _small(frame) for frame in container.decode(video=0)}
            if clip.name == "eye_makeup.avi":  # PyAV makes up wrong stamps for this one, in the right order
                everything = dict(zip(sorted(everything), everything.values(), strict=True))
            assert len(found) == len(stamps), clip.name
            for mine, stamp in zip(found, stamps, strict=True):
                assert np.array_equal(mine, everything[stamp]), (clip.name, stamp)
            checked += 1
    assert checked > 90


def test_a_clip_whose_edit_list_begins_behind_a_keyframe_is_seen_from_there(shared_clips: Path) -> None:
    found = sample(shared_clips / "animals" / "orangutan.mp4", Sampling(10), SMALL, Limits(600, 10**7))
    assert found.probe.duration_seconds == pytest.approx(5.36)
    assert found.times[0] == pytest.approx(0.24)  # not 0.8, as if it began with the keyframe behind


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
