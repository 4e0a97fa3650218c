"""Tests of near-duplicates: detection, distinct clips and stored fingerprints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from service.database import video_rows
from service.embedding.encoder import Encoder
from service.errors import InvalidInput, NotFound, NotReady
from service.ingestion.ingest import Ingest
from service.media import SUFFIXES, Decoder, Fingerprint, Limits, fingerprint
from service.models import Video
from service.search.duplicates import THRESHOLD, Duplicates, similarity
from tests.support.clips import ClipMaker, with_sound
from tests.support.copies import (
    BAD,
    COPIES,
    FAIR,
    GOOD,
    LIMITS,
    Frames,
    Library,
    barred,
    black,
    read_frames,
    resized,
    scene,
    texture,
)

FINGERPRINT_HEADER = b"reelsrs fingerprint 3\n"


# --- fingerprints


def test_every_frame_small_and_grey(make_clip: ClipMaker, decoder: Decoder) -> None:
    clip = make_clip("a.mp4", scene(1, 20))
    found = fingerprint(clip, LIMITS)
    assert found.images.shape == (1, 20, 16, 16)
    expected = Image.fromarray(scene(1, 20)[7]).convert("L").resize((16, 16), Image.Resampling.BOX)
    np.testing.assert_allclose(found.images[0, 7].astype(int), np.asarray(expected).astype(int), atol=4)
    assert np.array_equal(decoder.fingerprint(clip).images, found.images)


def test_borders_go_to_a_fraction_of_a_pixel(make_clip: ClipMaker) -> None:
    whole = fingerprint(make_clip("a.mp4", scene(1, 6, width=320, height=192)), LIMITS).images[0]
    for rows, columns in ((22, 0), (0, 34), (22, 34)):
        frames = barred(scene(1, 6, width=320, height=192), rows, columns)
        boxed = fingerprint(make_clip("b.mp4", frames), LIMITS).images
        assert boxed.shape == (2, 6, 16, 16)
        assert np.abs(boxed[0].astype(int) - whole.astype(int)).max() <= 5
        assert boxed[1, :, 0, 0].max() <= 2


def test_sound_is_part_of_the_fingerprint(make_clip: ClipMaker, decoder: Decoder, tmp_path: Path) -> None:
    silent = make_clip("a.mp4", scene(1, 10))
    sounding = with_sound(silent, tmp_path / "b.mp4")
    assert [decoder.fingerprint(clip).sound for clip in (silent, sounding)] == [False, True]
    assert np.array_equal(decoder.fingerprint(silent).images, decoder.fingerprint(sounding).images)


def test_a_dark_corner_is_no_border(make_clip: ClipMaker) -> None:
    frames = scene(1, 6)
    for frame in frames:
        frame[:30] = 0  # black at the top only
    assert len(fingerprint(make_clip("a.mp4", frames), LIMITS).images) == 1


def test_blank_frames_are_left_out(make_clip: ClipMaker) -> None:
    frames = scene(1, 10)
    fade = [(frames[0] * share).astype(np.uint8) for share in (0.05, 0.02)]
    white = [np.full_like(frames[0], 255)] * 3
    assert fingerprint(make_clip("a.mp4", black(frames, 8) + fade + frames + white), LIMITS).images.shape[1] == 10
    nothing = fingerprint(make_clip("b.mp4", black(frames, 8)), LIMITS)
    assert nothing.images.shape == (1, 0, 16, 16)


def test_a_turned_clip_is_turned(make_clip: ClipMaker) -> None:
    frames = scene(1, 4)
    clip = make_clip("a.mp4", frames, rotation=90)
    upright = make_clip("b.mp4", [np.rot90(frame) for frame in frames])
    one, other = fingerprint(clip, LIMITS).images, fingerprint(upright, LIMITS).images
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 5


def test_a_long_clip_is_thinned_out(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", scene(1, 1300, width=32, height=32), options={"preset": "ultrafast"})
    assert fingerprint(clip, LIMITS).images.shape == (1, 1024, 16, 16)


def test_limits_hold(make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", scene(1, 4))
    with pytest.raises(InvalidInput, match="15,360 pixels"):
        fingerprint(clip, Limits(600, 10_000))
    with pytest.raises(ValueError, match="images: must be uint8"):
        Fingerprint(np.zeros((3, 16, 16), np.uint8), sound=False)


# --- similarity


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind: str, make_clip: ClipMaker) -> None:
    original = fingerprint(make_clip("a.mp4", scene(1)), LIMITS)
    copy = fingerprint(make_clip("b.mp4", COPIES[kind](scene(1)), options=GOOD), LIMITS)
    assert similarity(original, copy) >= THRESHOLD + 0.05
    assert similarity(copy, original) == pytest.approx(similarity(original, copy), abs=1e-5)
    # Another movement at the same place is not a near-duplicate.
    other = fingerprint(make_clip("c.mp4", COPIES[kind](scene(2)), options=GOOD), LIMITS)
    assert similarity(original, other) < THRESHOLD - 0.2


def test_what_two_clips_share_beside_their_pictures_counts_for_nothing(make_clip: ClipMaker) -> None:
    one, other = scene(1, place=1), scene(1, place=2)

    def alike(change: Callable[[Frames], Frames]) -> float:
        first = fingerprint(make_clip("a.mp4", change(one), options=GOOD), LIMITS)
        return similarity(first, fingerprint(make_clip("b.mp4", change(other), options=GOOD), LIMITS))

    assert alike(lambda frames: black(frames, 60) + frames) == 0
    assert alike(lambda frames: barred(frames, 0, 200)) == 0
    assert alike(lambda frames: black(frames, 12)) == 0


def test_stills_are_compared_by_what_they_show(make_clip: ClipMaker) -> None:
    def still(name: str, seed: int, options: dict[str, str]) -> Fingerprint:
        return fingerprint(make_clip(name, [texture(seed, 96, 160)] * 10, options=options), LIMITS)

    assert similarity(still("a.mp4", 1, GOOD), still("b.mp4", 1, BAD)) > 0.95
    assert max(similarity(still("a.mp4", 1, GOOD), still("b.mp4", seed, GOOD)) for seed in range(2, 8)) == 0


def test_the_cut_of_a_dark_scene_is_found(make_clip: ClipMaker) -> None:
    # The first half is bright only in the middle: the cut seems to have borders, the whole clip does not.
    frames = scene(1, 40)
    for frame in frames[:20]:
        frame[:20] = frame[-20:] = 4
    whole = fingerprint(make_clip("a.mp4", frames), LIMITS)
    cut = fingerprint(make_clip("b.mp4", frames[:20], options=GOOD), LIMITS)
    assert (len(whole.images), len(cut.images)) == (1, 2)
    assert similarity(whole, cut) > 0.95


@pytest.fixture
def library(tmp_path: Path, decoder: Decoder) -> Iterator[Library]:
    """Yield an empty library."""
    made = Library(tmp_path, decoder)
    yield made
    made.db.close()


def test_the_copies_of_a_video_best_first(library: Library, make_clip: ClipMaker) -> None:
    original = library.add(make_clip("original.mp4", scene(1)))
    library.add(make_clip("bad.mp4", resized(scene(1), 0.5), options=FAIR))
    library.add(make_clip("stranger.mp4", scene(2)))
    library.add(make_clip("good.mp4", scene(1), options=GOOD))
    found = library.duplicates.find(original).near_duplicates
    assert [copy.video.title for copy in found] == ["good", "bad"]
    assert 1 >= found[0].similarity > found[1].similarity >= THRESHOLD
    assert sorted(library.copies(found[1].video.id)) == ["good", "original"]


def test_equal_copies_are_in_the_order_of_their_ids(library: Library, make_clip: ClipMaker) -> None:
    original = library.add(make_clip("a.mp4", scene(1)))
    ids = [library.add(make_clip(f"{n}.mkv", scene(1), metadata={"title": str(n)})) for n in range(4)]
    assert [copy.video.id for copy in library.duplicates.find(original).near_duplicates] == sorted(ids)


def test_who_cannot_be_asked_about(library: Library, make_clip: ClipMaker) -> None:
    with pytest.raises(NotFound):
        library.duplicates.find("nobody")
    video = library.add(make_clip("a.mp4", scene(1, 4)))
    with library.db.write() as connection:
        video_rows.set_status(connection, library.videos[video].pk, "failed", 0.0, "reason")
    with pytest.raises(NotReady, match="failed"):
        library.duplicates.find(video)


def test_black_clips_are_copies_of_nothing(library: Library, make_clip: ClipMaker) -> None:
    nothing = [library.add(make_clip(f"{n}.mp4", black(scene(1), 10 + n))) for n in range(2)]
    library.add(make_clip("something.mp4", scene(1)))
    assert [library.copies(video) for video in nothing] == [[], []]
    assert library.duplicates.groups() == ()


def test_a_clip_that_cannot_be_decoded_any_more_is_skipped(library: Library, make_clip: ClipMaker) -> None:
    original = library.add(make_clip("a.mp4", scene(1)))
    broken = library.add(make_clip("b.mp4", scene(1), options=GOOD))
    gone = library.add(make_clip("c.mp4", scene(1), options=BAD))
    library.add(make_clip("d.mp4", resized(scene(1), 0.5)))
    (library.files.folder(library.videos[broken].sha256) / "video").write_bytes(b"rust")
    library.files.delete(library.videos[gone].sha256)
    with capture_logs() as logs:
        assert library.copies(original) == ["d"]
        assert library.copies(broken) == []
        assert len(library.duplicates.groups()) == 1
    assert {entry["video"] for entry in logs} == {broken, gone}


# --- groups


def test_groups_keep_the_best_of_each(library: Library, make_clip: ClipMaker) -> None:
    library.add(make_clip("small.mp4", resized(scene(1), 0.5)))
    library.add(make_clip("cut.mp4", scene(1)[:20]))
    library.add(make_clip("whole.mp4", scene(1)))
    library.add(make_clip("whole again.mp4", scene(1), options=GOOD))
    library.add(make_clip("stranger.mp4", scene(2)))
    library.add(make_clip("other.mp4", scene(3, width=320, height=192)))
    library.add(make_clip("other small.mp4", scene(3)))
    called: list[None] = []
    groups = library.duplicates.groups(lambda: called.append(None))
    assert [group.best.title for group in groups] == ["other", "whole"]
    assert [copy.video.title for copy in groups[0].near_duplicates] == ["other small"]
    assert {copy.video.title for copy in groups[1].near_duplicates} == {"whole again", "cut", "small"}
    similarities = [copy.similarity for copy in groups[1].near_duplicates]
    assert similarities == sorted(similarities, reverse=True)
    assert len(called) == 7


def test_a_compilation_makes_no_copies_of_its_parts(library: Library, make_clip: ClipMaker) -> None:
    one, other = scene(1, place=1), scene(2, place=2)
    library.add(make_clip("one.mp4", one))
    library.add(make_clip("compilation.mp4", resized(one + other, 0.5), options=GOOD))
    library.add(make_clip("other.mp4", other))
    (group,) = library.duplicates.groups()
    # The two clips are not copies of each other. The compilation contains both, so keeping it keeps all content once.
    assert (group.best.title, group.keep.because) == ("compilation", "longer")
    assert {copy.video.title for copy in group.near_duplicates} == {"one", "other"}


def test_one_of_two_that_proposes_the_other_is_enough(library: Library, make_clip: ClipMaker) -> None:
    first = library.add(make_clip("a.mp4", scene(1)))
    second = library.add(make_clip("b.mp4", scene(1), options=GOOD))
    for blind in (first, second):

        def proposed(video: Video, blind: str = blind) -> list[Video]:
            return [] if video.id == blind else [library.videos[blind]]

        finder = Duplicates(library.db, library.files, library.decoder, proposed)
        assert [len(group.near_duplicates) for group in finder.groups()] == [1]


# --- stored fingerprints


def test_a_fingerprint_is_made_once_and_kept(
    library: Library, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [library.add(make_clip(f"{n}.mp4", scene(1), options={"crf": str(18 + n)})) for n in range(3)]
    assert not library.fingerprint_file(videos[0]).exists()  # uploads do not wait for fingerprints
    before = library.copies(videos[0])
    assert sorted(before) == ["1", "2"]
    assert all(library.fingerprint_file(video).stat().st_size < 20_000 for video in videos)
    library.forget()
    monkeypatch.setattr(library.decoder, "fingerprint", None)
    assert library.copies(videos[0]) == before
    library.fingerprint_file(videos[0]).unlink()
    assert library.copies(videos[0]) == before  # cached in memory


@pytest.mark.parametrize("damage", ["another version", "cut off", "flipped", "empty"])
def test_a_stale_or_broken_fingerprint_is_made_anew(damage: str, library: Library, make_clip: ClipMaker) -> None:
    video = library.add(make_clip("a.mp4", scene(1)))
    library.add(make_clip("b.mp4", scene(1), options=GOOD))
    library.copies(video)
    file = library.fingerprint_file(video)
    whole = file.read_bytes()
    assert whole.startswith(FINGERPRINT_HEADER)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    file.write_bytes(
        {
            "another version": whole.replace(FINGERPRINT_HEADER, b"reelsrs fingerprint 0\n"),
            "cut off": whole[: len(whole) * 2 // 3],
            "flipped": bytes(flipped),
            "empty": b"",
        }[damage]
    )
    library.forget()
    assert library.copies(video) == ["b"]
    assert file.read_bytes() == whole


def test_deleting_a_video_deletes_its_fingerprint(library: Library, make_clip: ClipMaker) -> None:
    kept = library.add(make_clip("a.mp4", scene(1)))
    gone = library.add(make_clip("b.mp4", scene(1), options=GOOD))
    assert library.copies(kept) == ["b"]
    folder = library.fingerprint_file(gone).parent
    assert sorted(path.name for path in folder.iterdir()) == ["fingerprint", "video"]

    def no_model() -> Encoder:
        raise AssertionError("nothing is embedded here")

    Ingest(library.db, library.files, library.decoder, no_model, max_upload_bytes=1).delete(gone)
    assert not folder.exists()
    assert library.copies(kept) == []
    with pytest.raises(NotFound):
        library.files.put_fingerprint(library.videos[gone].sha256, b"late")
    assert not folder.exists()


# --- real clips

TERMINALS = ["terminal_h264", "terminal_vp9_webm", "no_audio_terminal", "rectangular_pixels"]
TWINS = [
    {"near_duplicates/red_flower_webm", "nature_landscape/red_flower"},
    {"near_duplicates/toy_frog_webm", "objects_indoor/toy_frog"},
    {"near_duplicates/carphone_distorted", "people_talking/carphone"},
    {"near_duplicates/pool_cleaning_1s", "objects_indoor/pool_cleaning"},
    # One terminal recording in four forms: H.264, VP9, without audio, with rectangular pixels.
    *(set(pair) for pair in itertools.combinations([f"odd_files/{name}" for name in TERMINALS], 2)),
]
COMPARED = ("near_identical_asl/*", "near_duplicates/*", "nature_landscape/*", "objects_indoor/toy_*")
COMPARED += ("objects_indoor/pool_*", "people_talking/car*", "people_talking/two_*", *(f"*/{t}.*" for t in TERMINALS))
COPIED = ["near_identical_asl/asl_no", "near_identical_asl/asl_yes", "people_talking/carphone"]


def test_precision_and_recall_over_real_clips_and_their_copies(
    decoder: Decoder, shared_clips: Path, make_clip: ClipMaker
) -> None:
    """Compare all pairs. Twenty of the clips show people in one room, each with a different gesture."""
    paths = {
        f"{path.parent.name}/{path.stem}": path
        for pattern in COMPARED
        for path in sorted(shared_clips.glob(pattern))
        if path.suffix in SUFFIXES
    }
    originals = {name: name for name in paths}
    for name in COPIED:
        frames = read_frames(paths[name])
        for number, (kind, change) in enumerate(COPIES.items()):
            codec, suffix, options = (("libx264", "mp4", FAIR), ("mpeg4", "avi", {"qscale": "8"}))[number % 2]
            copy = f"{name} {kind}"
            changed = change(frames)
            paths[copy] = make_clip(f"{len(paths)}.{suffix}", changed, codec=codec, rate=25, options=options)
            originals[copy] = name
    with ThreadPoolExecutor(decoder.processes) as pool:
        made = dict(zip(paths, pool.map(decoder.fingerprint, paths.values()), strict=True))
    found = [{a, b} for a, b in itertools.combinations(paths, 2) if similarity(made[a], made[b]) >= THRESHOLD]
    # Copies of one clip may show different parts, so a match between two copies is neither required nor wrong.
    asked = TWINS + [{copy, original} for copy, original in originals.items() if copy != original]
    wrong = [pair for pair in found if not _related({originals[name] for name in pair})]
    missed = [pair for pair in asked if pair not in found]
    assert len(asked) == 10 + len(COPIED) * len(COPIES)
    assert not wrong, f"precision {1 - len(wrong) / len(found):.2f}"
    assert not missed, f"recall {1 - len(missed) / len(asked):.2f}"


def _related(names: set[str]) -> bool:
    return len(names) == 1 or names in TWINS
