"""Tests of the synthetic scenes: deterministic per seed, distinct by caption, playable after encoding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.ndimage import label

from service.media.synthetic.drawing import draw_frame, write_clip
from service.media.synthetic.scenes import CATEGORIES, Scene, distinct_scenes, random_scene


def scene(**changes: object) -> Scene:
    facts: dict[str, object] = {
        "shape": "heart",
        "colour": "red",
        "count": 2,
        "motion": "left",
        "setting": "striped",
        "tint": "blue",
        "seed": 11,
    }
    return Scene(**(facts | changes))  # type: ignore[arg-type]


def pixels(of: Scene, time_share: float, width: int = 96, height: int = 96) -> np.ndarray:
    return np.asarray(draw_frame(of, time_share, width, height)).astype(float)


def test_captions_are_natural_words() -> None:
    assert scene().caption == "two red hearts moving left on a striped blue background"
    assert scene(count=1).subject == "a red heart"
    assert scene(count=1, colour="orange").subject == "an orange heart"
    assert scene(setting="meadow", tint="").caption == "two red hearts moving left over a green meadow"


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": "cow"},
        {"count": 5},
        {"motion": "flying"},
        {"tint": ""},
        {"setting": "meadow", "tint": "blue"},
    ],
)
def test_a_scene_that_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown|is not valid for"):
        scene(**wrong)


def test_the_same_seed_gives_the_same_scenes_with_distinct_captions() -> None:
    scenes = distinct_scenes(300, seed=5)
    assert scenes == distinct_scenes(300, seed=5)
    assert scenes != distinct_scenes(300, seed=6)
    assert len({each.caption for each in scenes}) == 300
    categories = Counter(each.category for each in scenes)
    assert set(categories) == set(CATEGORIES)
    assert min(categories.values()) >= 25


def test_a_frame_depends_on_its_scene_and_moment_alone() -> None:
    other = random_scene(np.random.default_rng(3))
    first = pixels(scene(), 0.3)
    pixels(other, 0.8)
    assert np.array_equal(first, pixels(scene(), 0.3))
    assert not np.array_equal(first, pixels(scene(), 0.6))
    assert not np.array_equal(first, pixels(scene(seed=12), 0.3))


def test_what_stands_still_stands_still_and_what_moves_left_moves_left() -> None:
    assert np.array_equal(pixels(scene(motion="still"), 0), pixels(scene(motion="still"), 1))

    def middle_of_red(time_share: float) -> float:
        image = pixels(scene(setting="plain", count=1), time_share)
        red = (image[..., 0] > 180) & (image[..., 2] < 110)
        return float(np.nonzero(red)[1].mean())

    assert middle_of_red(0) > middle_of_red(0.5) > middle_of_red(1)


def test_the_count_can_be_seen() -> None:
    for count in (1, 2, 3, 4):
        for seed in range(5):
            drawn = scene(motion="still", setting="plain", count=count, seed=seed, shape="circle")
            image = pixels(drawn, 0, 128, 128)
            red = (image[..., 0] > 180) & (image[..., 2] < 110)
            assert label(red)[1] == count


def test_every_setting_is_drawn_at_any_proportions() -> None:
    for category, settings in CATEGORIES.items():
        for setting in settings:
            tint = "blue" if category in ("studio", "pattern") else ""
            drawn = scene(setting=setting, tint=tint)
            assert drawn.category == category
            for width, height in ((64, 36), (36, 64), (16, 16)):
                image = pixels(drawn, 0.5, width, height)
                assert image.shape == (height, width, 3)
                assert image.std() > 8


def test_a_clip_is_an_mp4_of_the_asked_size_and_length(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(scene(), path, seconds=1.5, fps=12, width=128, height=96)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a browser can start before it has the whole file"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in ("h264", "mpeg4")
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12
        frames = list(container.decode(video=0))
    assert len(frames) == 18
    assert {(frame.width, frame.height) for frame in frames} == {(128, 96)}
    assert [float(frame.time or 0) for frame in frames] == pytest.approx([n / 12 for n in range(18)])
    shown = frames[9].to_ndarray(format="rgb24").astype(float)
    assert np.abs(shown - pixels(scene(), 9 / 17, 128, 96)).mean() < 8


def test_a_clip_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_clip(scene(), tmp_path / name, seconds=0.5)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
