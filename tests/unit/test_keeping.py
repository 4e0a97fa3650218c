"""Tests of the choice of the video to keep among near-duplicates, with exact numbers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.models import Sampling, Video
from service.search.keeping import choose

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ORIGINAL = Video(
    pk=1,
    id="original",
    sha256="0" * 64,
    size_bytes=1_000_000,
    filename="a.mp4",
    title="a",
    caption=None,
    category=None,
    status="ready",
    progress=1.0,
    error=None,
    sampling=Sampling(1),
    media_type="video/mp4",
    codec="h264",
    width=640,
    height=360,
    duration_seconds=10.0,
    frames_per_second=25.0,
    frame_times=(0.0,),
    created_at=NOW,
    updated_at=NOW,
)


def _copy(**changes: Any) -> Video:
    """Return a newer copy of the original with changed properties."""
    return replace(ORIGINAL, **{"pk": 2, "id": "copy", "created_at": NOW + timedelta(days=1), **changes})


def _silent(_: Video) -> bool:
    return False


def _check(best: Video, other: Video, because: str, sound: tuple[str, ...] = ()) -> None:
    for videos in ([best, other], [other, best]):
        assert choose(videos, lambda video: video.id in sound) == (best, because)


@pytest.mark.parametrize(
    ("copy", "because"),
    [
        (_copy(duration_seconds=6.0, width=1280, height=720, size_bytes=9_000_000), "longer"),
        (_copy(duration_seconds=9.7), "longer"),
        (_copy(duration_seconds=None), "longer"),
        (_copy(width=320, height=180, size_bytes=250_000), "more pixels"),
        (_copy(width=320, height=180, size_bytes=700_000), "more pixels"),  # 2.8 times the bits per pixel
        (_copy(size_bytes=890_000), "more bits per pixel"),
        (_copy(width=1280, height=720, size_bytes=1_300_000), "more bits per pixel"),  # enlarged
        (_copy(codec="mjpeg", size_bytes=4_000_000), "more bits per pixel"),
        (_copy(codec="gif", size_bytes=30_000_000), "more bits per pixel"),
        (_copy(), "older"),
        (_copy(size_bytes=1_050_000, duration_seconds=10.2), "older"),
        (_copy(created_at=NOW, id="z"), "older"),
    ],
)
def test_the_original_is_kept(copy: Video, because: str) -> None:
    _check(ORIGINAL, copy, because)


@pytest.mark.parametrize(
    ("copy", "because"),
    [
        (_copy(duration_seconds=10.3), "longer"),
        (_copy(width=1280, height=720, size_bytes=2_500_000), "more pixels"),
        (_copy(size_bytes=1_200_000), "more bits per pixel"),
        (_copy(codec="mjpeg", size_bytes=6_000_000), "more bits per pixel"),
        (_copy(width=320, height=180, size_bytes=760_000), "more bits per pixel"),  # 3.04 times the bits per pixel
    ],
)
def test_a_better_copy_is_kept(copy: Video, because: str) -> None:
    _check(copy, ORIGINAL, because)


def test_sound_decides_before_age() -> None:
    silent = replace(ORIGINAL, size_bytes=950_000)
    _check(_copy(), silent, "sound", sound=("copy",))
    _check(silent, _copy(), "older", sound=("copy", "original"))


def test_sound_does_not_make_up_for_a_worse_picture() -> None:
    _check(ORIGINAL, _copy(size_bytes=500_000), "more bits per pixel", sound=("copy",))


def test_the_reason_is_what_the_last_of_the_others_lacked() -> None:
    videos = [
        _copy(id="cut", duration_seconds=3.0),
        _copy(id="small", width=320, height=180, size_bytes=200_000),
        ORIGINAL,
        _copy(id="again", size_bytes=400_000),
    ]
    assert choose(videos, _silent) == (ORIGINAL, "more bits per pixel")
    assert choose(videos[:3], _silent) == (ORIGINAL, "more pixels")
    assert choose([videos[0], ORIGINAL], _silent) == (ORIGINAL, "longer")


def test_videos_of_unknown_length_are_compared_by_pixels() -> None:
    unknown = replace(ORIGINAL, duration_seconds=None)
    _check(unknown, _copy(duration_seconds=None, width=320, height=180), "more pixels")
