"""Tests of the choice among several video streams: the one that a player shows."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from service.errors import Undecodable
from service.media import Limits, fingerprint, probe, sample
from service.models import ImageSpec, Sampling
from tests.support import services
from tests.support.paths import SHARED

LIMITS = Limits(max_duration_seconds=600, max_pixels=2_000_000)
SMALL = ImageSpec(32, 32)
DEFAULT = 0x1


@dataclass(frozen=True)
class Track:
    """A video track to write: `frames` frames of one grey level."""

    level: int
    codec: str = "mpeg4"
    frames: int = 10
    size: tuple[int, int] = (64, 48)
    disposition: int = 0
    first: int = 0  # number of the frame at which the track begins


RED_STILL = Track(40, "mjpeg", frames=1)
MOVING = Track(200)


def write(path: Path, tracks: list[Track]) -> Path:
    """Write the tracks beside each other, their packets in the order of time."""
    with av.open(str(path), "w") as container:
        streams, packets = [], []
        for track in tracks:
            stream = container.add_stream(track.codec, rate=10)
            stream.width, stream.height = track.size
            stream.pix_fmt = "yuvj420p" if track.codec == "mjpeg" else "yuv420p"
            stream.disposition = track.disposition  # type: ignore[assignment]
            streams.append(stream)
        for track, stream in zip(tracks, streams, strict=True):
            for number in range(track.frames):
                pixels = np.full((track.size[1], track.size[0], 3), track.level, np.uint8)
                pixels[: 10 + number] = 10  # not blank, so that a fingerprint keeps the frame
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = track.first + number, Fraction(1, 10)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):
            container.mux(packet)
    return path


def level_of(clip: Path) -> int:
    """Return the grey level of the stream that is sampled, to the nearest 40."""
    return 40 * round(float(sample(clip, Sampling(2), SMALL, LIMITS).pixels.max()) / 40)


@pytest.mark.parametrize("name", ["a.mkv", "a.mov", "a.avi"])
@pytest.mark.parametrize("still_first", [True, False])
@pytest.mark.parametrize("codec", ["mjpeg", "libx264", "mpeg4"])
def test_a_moving_stream_comes_before_a_still(tmp_path: Path, name: str, still_first: bool, codec: str) -> None:
    still = Track(40, codec, frames=1, size=(128, 96), disposition=DEFAULT)
    clip = write(tmp_path / name, [still, MOVING] if still_first else [MOVING, still])
    assert level_of(clip) == 200
    assert (probe(clip, LIMITS).codec, probe(clip, LIMITS).width) == ("mpeg4", 64)


def test_a_preview_of_pictures_comes_after_the_video(tmp_path: Path) -> None:
    preview = Track(40, "mjpeg", frames=10, size=(128, 96))
    assert level_of(write(tmp_path / "a.mkv", [preview, MOVING])) == 200
    assert level_of(write(tmp_path / "b.mkv", [preview, Track(120, "mjpeg", size=(64, 48))])) == 40, "larger"


def test_among_moving_streams_the_default_the_larger_the_longer_the_first_wins(tmp_path: Path) -> None:
    small, large = Track(40), Track(120, size=(128, 96))
    flagged = Track(200, disposition=DEFAULT)
    longer = Track(160, frames=30)
    assert level_of(write(tmp_path / "a.mkv", [large, flagged])) == 200
    assert level_of(write(tmp_path / "b.mkv", [small, large])) == 120
    assert level_of(write(tmp_path / "c.mkv", [large, small])) == 120
    assert level_of(write(tmp_path / "d.mkv", [small, longer])) == 160
    assert level_of(write(tmp_path / "d.avi", [small, longer])) == 160
    assert level_of(write(tmp_path / "e.mkv", [small, MOVING])) == 40


def test_covers_and_thumbnail_tracks_are_no_video(tmp_path: Path) -> None:
    for number, disposition in enumerate((0x400, 0x400 | 0x800)):
        cover = Track(40, "mjpeg", frames=1, disposition=disposition)
        assert level_of(write(tmp_path / f"{number}.mp4", [cover, MOVING])) == 200


def test_a_stream_that_begins_late_is_found_by_its_default_flag_only_if_it_moves(tmp_path: Path) -> None:
    late = Track(40, frames=5, first=20, disposition=DEFAULT)
    assert level_of(write(tmp_path / "a.mkv", [MOVING, late])) == 40


def test_only_a_still_is_taken_for_want_of_anything_else(tmp_path: Path) -> None:
    assert level_of(write(tmp_path / "a.mkv", [RED_STILL])) == 40


def test_a_codec_that_is_not_accepted_leaves_the_other_stream(tmp_path: Path) -> None:
    foreign = Track(40, "asv1", size=(128, 96), disposition=DEFAULT)
    assert level_of(write(tmp_path / "a.avi", [foreign, MOVING])) == 200
    with pytest.raises(Undecodable, match="the video codec"):
        probe(write(tmp_path / "b.avi", [foreign]), LIMITS)


def test_fingerprint_and_thumbnails_are_of_the_same_stream(tmp_path: Path) -> None:
    both = write(tmp_path / "a.mkv", [RED_STILL, MOVING])
    alone = write(tmp_path / "b.mkv", [MOVING])
    assert np.array_equal(fingerprint(both, LIMITS).images, fingerprint(alone, LIMITS).images)
    assert fingerprint(both, LIMITS).images.shape[1] == 10
    there, here = (sample(clip, Sampling(3), SMALL, LIMITS) for clip in (both, alone))
    assert there.thumbnails == here.thumbnails
    assert there.times.tolist() == here.times.tolist()


def test_the_case_handed_over_shows_its_moving_stream() -> None:
    case = SHARED / "cases" / "01_still_track_first.mkv"
    if not case.is_file():
        services.missing(f"the shared cases are not here: {case}")
    found = sample(case, Sampling(4), SMALL, LIMITS)
    assert (found.probe.codec, found.probe.duration_seconds) == ("h264", pytest.approx(2.0))
    red, _, blue = found.pixels.mean(axis=(0, 1, 2))
    assert (blue > 180, red < 60) == (True, True)
