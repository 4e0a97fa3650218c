"""Tests of the copy that is proposed to keep, with clips that were encoded again, resized, trimmed, or given sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.media import SUFFIXES, Decoder
from tests.support.clips import ClipMaker, with_sound
from tests.support.copies import BAD, GOOD, Library, read_frames, resized, scene

GROUPS = (  # clips in the shared folder, the original first
    ("nature_landscape/red_flower", "near_duplicates/red_flower_webm"),
    ("objects_indoor/toy_frog", "near_duplicates/toy_frog_webm"),
    ("people_talking/carphone", "near_duplicates/carphone_distorted"),
    ("objects_indoor/pool_cleaning", "near_duplicates/pool_cleaning_1s"),
    (
        "odd_files/terminal_h264",
        *(f"odd_files/{n}" for n in ("terminal_vp9_webm", "no_audio_terminal", "rectangular_pixels")),
    ),
)


@pytest.fixture
def library(tmp_path: Path, decoder: Decoder) -> Iterator[Library]:
    """Yield an empty library."""
    made = Library(tmp_path, decoder)
    yield made
    made.db.close()


def test_the_original_is_kept_and_the_reason_said(
    library: Library, make_clip: ClipMaker, tmp_path: Path, decoder: Decoder
) -> None:
    frames = scene(1, width=320, height=192)
    original = make_clip("original.mp4", frames)  # without loss, so that sound adds little to its size
    decoded = read_frames(original)
    copies = {
        "more bits per pixel": make_clip("again.mp4", decoded, options=BAD),
        "more pixels": make_clip("small.mp4", resized(decoded, 0.5), options=GOOD),
        "longer": make_clip("cut.mp4", decoded[:24]),
        "older": make_clip("other container.mkv", frames),
        "sound": with_sound(original, tmp_path / "sounding.mp4"),
    }
    enlarged = make_clip("enlarged.mp4", resized(decoded, 2), options=BAD)
    for number, (because, copy) in enumerate([*copies.items(), ("more bits per pixel", enlarged)]):
        (tmp_path / str(number)).mkdir()
        one = Library(tmp_path / str(number), decoder)
        order = (original, copy) if because == "older" else (copy, original)
        ids = {path.stem: one.add(path) for path in order}
        (group,) = one.duplicates.groups()
        expected = "sounding" if because == "sound" else "original"
        assert (group.best.title, group.keep.because) == (expected, because)
        for video in ids.values():
            assert one.duplicates.find(video).keep == group.keep
        one.db.close()


def test_nothing_is_proposed_without_a_near_duplicate(library: Library, make_clip: ClipMaker) -> None:
    assert library.duplicates.find(library.add(make_clip("a.mp4", scene(1)))).keep is None


@pytest.mark.parametrize("original_first", [True, False])
def test_the_originals_of_real_clips_are_kept(
    library: Library, shared_clips: Path, make_clip: ClipMaker, original_first: bool
) -> None:
    for names in GROUPS:
        for name in names if original_first else names[::-1]:
            library.add(next(path for path in shared_clips.glob(f"{name}.*") if path.suffix in SUFFIXES))
    kept = {group.best.title: group.keep.because for group in library.duplicates.groups()}
    assert kept == {
        "red_flower": "more bits per pixel",
        "toy_frog": "more bits per pixel",
        "carphone": "more bits per pixel",
        "pool_cleaning": "longer",
        "terminal_h264": "more bits per pixel",
    }
