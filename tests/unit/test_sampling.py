"""Tests of sampling: frame selection, times, orientation, and invalid or hostile files."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidInput, Undecodable
from service.media import Limits, probe, sample, select_frames
from service.media.container import Clip
from service.media.sampling import Sample
from service.media.timeline import Timeline
from service.models import ImageSpec, Probe, Sampling
from tests.support.clips import ClipMaker, numbered, quarters

LIMITS = Limits(max_duration_seconds=600, max_pixels=2_000_000)
SMALL = ImageSpec(32, 32)


def _levels(pixels: np.ndarray, count: int) -> list[int]:
    """Return the number of each image among `count` numbered frames."""
    return [round((float(image.mean()) - 20) / 200 * (count - 1)) for image in pixels]


# --- frame selection


@given(
    gaps=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    wanted=st.integers(1, 80),
    interval=st.one_of(st.none(), st.integers(1, 20)),
)
def test_the_choice_is_ascending_inside_and_as_long_as_can_be(
    gaps: list[int], wanted: int, interval: int | None
) -> None:
    times = np.cumsum([0, *gaps]).astype(float)[:-1]
    chosen = select_frames(times, float(sum(gaps)), Sampling(wanted, interval))
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < len(times)
    if interval is None:
        assert len(chosen) == min(wanted, len(times))
    else:
        assert chosen.tolist() == list(range(0, len(times), interval))[:wanted]


def test_even_frames_are_the_middles_of_equal_shares() -> None:
    assert select_frames(np.arange(100.0), 100.0, Sampling(10)).tolist() == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    # Nine frames in the first second; one frame for the nine seconds after it.
    assert select_frames(np.array([*np.arange(9) / 9, 1.0]), 10.0, Sampling(2)).tolist() == [8, 9]


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
    # 200 grey levels in 8 bits of luma: a difference of 1 is rounding.
    np.testing.assert_allclose(_levels(found.pixels, 200), expected, atol=1)


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_keyframes_are_the_nearest_ones_and_fewer_where_there_are_fewer(make_clip: ClipMaker, bframes: str) -> None:
    options = {"qp": "0", "g": "20", "bf": bframes, "sc_threshold": "0"}
    clip = make_clip("a.mp4", numbered(200), options=options)
    found = sample(clip, Sampling(4), SMALL, LIMITS, keyframes=True)
    np.testing.assert_allclose(found.times, [2.0, 8.0, 12.0, 18.0], atol=1e-3)  # nearest to 2.5, 7.5, 12.5 and 17.5
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
    # Each target is in the middle of a group of 50. About a quarter of the 26 frames up to it are reference frames.
    assert len(seen) < 4 * 26 / 2


def test_a_short_clip_gives_the_frames_it_has(make_clip: ClipMaker) -> None:
    assert len(sample(make_clip("a.mp4", numbered(3)), Sampling(10), SMALL, LIMITS).times) == 3
    assert sample(make_clip("b.mp4", numbered(1)), Sampling(10), SMALL, LIMITS).times.tolist() == [0.0]


def test_a_varying_frame_rate_is_sampled_in_time(make_clip: ClipMaker) -> None:
    # Ten frames in one second, then ten frames in ten seconds.
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
        assert Image.open(io.BytesIO(found.thumbnails[0])).size == (width, height)


def test_metadata_in_another_encoding(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(4), metadata={"title": "caption here"})
    clip.write_bytes(clip.read_bytes().replace(b"caption here", b"caption \xff\xfe\xe9\xe8"))
    assert len(sample(clip, Sampling(2), SMALL, LIMITS).times) == 2


# --- orientation, aspect ratio, colours


def _corners(image: np.ndarray) -> str:
    """Return the colours at upper left, upper right, lower left and lower right, as letters."""
    height, width = image.shape[:2]
    letters = []
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            red, green, blue = (int(value) for value in image[y, x])
            if min(red, green, blue) > 180:
                letters.append("w")
            else:
                letters.append("rgb"[int(np.argmax([red, green, blue]))])
    return "".join(letters)


@pytest.mark.parametrize(("rotation", "corners"), [(0, "rgbw"), (90, "gwrb"), (180, "wbgr"), (270, "brwg")])
def test_the_display_matrix_turns_the_picture(make_clip: ClipMaker, rotation: int, corners: str) -> None:
    """Rotations are counterclockwise, as in FFmpeg's av_display_rotation_get."""
    clip = make_clip("a.mp4", [quarters()] * 3, rotation=rotation, pixel_format="yuv444p")
    found = sample(clip, Sampling(1), SMALL, LIMITS)
    image = np.asarray(Image.open(io.BytesIO(found.thumbnails[0])))
    assert _corners(image) == corners
    expected = (64, 48) if rotation % 180 == 0 else (48, 64)
    assert (found.probe.width, found.probe.height) == expected == image.shape[1::-1]


def test_rectangular_pixels_are_stretched(make_clip: ClipMaker) -> None:
    found = sample(make_clip("a.mp4", [quarters()] * 2, aspect=Fraction(3, 2)), Sampling(1), SMALL, LIMITS)
    assert (found.probe.width, found.probe.height) == (96, 48)
    assert Image.open(io.BytesIO(found.thumbnails[0])).size == (96, 48)


def test_hdr_is_brought_down_to_what_a_screen_shows(make_clip: ClipMaker) -> None:
    # PQ code 0.58 is paper white (203 nits); without tone mapping it would be a middle grey.
    grey = [np.full((48, 64, 3), 148, np.uint8)] * 3
    plain = sample(make_clip("sdr.mp4", grey), Sampling(1), SMALL, LIMITS)
    hdr = sample(make_clip("hdr.mp4", grey, transfer=16), Sampling(1), SMALL, LIMITS)
    hlg = sample(
        make_clip("hlg.mp4", [np.full((48, 64, 3), 191, np.uint8)] * 3, transfer=18), Sampling(1), SMALL, LIMITS
    )
    assert abs(float(plain.pixels.mean()) - 148) < 4
    assert float(hdr.pixels.mean()) > 235
    assert float(hlg.pixels.mean()) > 235


# --- invalid and hostile files


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
    header_only = make_clip("b.mp4", numbered(60))  # an MP4 file has its index at the end
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


# --- the sample


@pytest.mark.parametrize(
    ("times", "pixels", "thumbnails"),
    [(0, (0, 8, 8, 3), 0), (2, (3, 8, 8, 3), 2), (2, (2, 8, 8, 3), 1), (2, (2, 8, 8, 4), 2), (0, (0, 8, 8, 4), 0)],
)
def test_a_sample_has_as_many_times_as_pictures(times: int, pixels: tuple[int, ...], thumbnails: int) -> None:
    described = Probe("video/mp4", "h264", 8, 8, 1.0, 10.0)
    words = re.escape(f"inconsistent sample: {times} times, pixels {pixels}, {thumbnails} thumbnails")
    with pytest.raises(ValueError, match=f"^{words}$"):
        Sample(described, np.zeros(times), np.zeros(pixels, np.uint8), (b"",) * thumbnails)


def test_the_duration_is_what_the_frames_say(make_clip: ClipMaker) -> None:
    # An MKV file gives its end by the last time stamp, without the duration of the last frame.
    clip = make_clip("a.mkv", numbered(5), stamps=[0, 1, 2, 3, 9])
    found = sample(clip, Sampling(2), SMALL, LIMITS)
    with Clip(clip, LIMITS) as opened:
        assert found.probe.duration_seconds == Timeline.read(opened).duration_seconds
    assert (found.probe.width, found.probe.height) == (64, 48)
    assert found.pixels.shape == (2, 32, 32, 3)
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in found.thumbnails)


def test_a_clip_that_takes_too_much_decoding_is_refused_and_says_so(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(30), options={"g": "100", "qp": "10"})
    frames = 23  # up to the middle of the second of two equal parts
    cost = frames * (64 * 48 + 100_000)  # each frame has a fixed cost, however small its size
    assert len(sample(clip, Sampling(2), SMALL, replace(LIMITS, max_decoded_pixels=cost)).times) == 2
    words = (
        "file: the clip has too few keyframes: 23 frames of 64 x 48 must be decoded to sample a few; "
        "encode it with a keyframe every few seconds, or shorten it"
    )
    with pytest.raises(InvalidInput, match=f"^{re.escape(words)}$"):
        sample(clip, Sampling(2), SMALL, replace(LIMITS, max_decoded_pixels=cost - 1))
    # Decoding only the keyframe is cheap.
    fewer = sample(clip, Sampling(2), SMALL, replace(LIMITS, max_decoded_pixels=cost - 1), keyframes=True)
    assert fewer.times.tolist() == [0.0]


def test_as_many_threads_as_are_asked_for_give_the_same_frames(make_clip: ClipMaker, tmp_path: Path) -> None:
    clip = make_clip("a.mp4", numbered(30), options={"g": "5", "qp": "10"})
    one, two = (sample(clip, Sampling(6), SMALL, LIMITS, threads=threads) for threads in (1, 2))
    assert np.array_equal(one.pixels, two.pixels)
    with Clip(clip, LIMITS, 1) as opened:
        assert opened.stream.codec_context.thread_count == 1
