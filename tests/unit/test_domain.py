"""Tests of the validation rules of domain values."""

import pytest

from service.errors import InvalidInput
from service.models import Sampling, Weights, check_k, clean_caption, clean_category, clean_filename, clean_title


@pytest.mark.parametrize(("video", "text"), [(0, 0), (-1, 1), (1, -0.1), (float("nan"), 1), (1, float("inf"))])
def test_weights_that_mean_nothing_are_refused(video: float, text: float) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        Weights(video, text)


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_has_limits(k: int) -> None:
    with pytest.raises(InvalidInput, match="k: must be from 1 to 1000"):
        check_k(k)


@pytest.mark.parametrize(("num_frames", "interval"), [(0, None), (257, None), (10, 0), (10, -3)])
def test_sampling_has_limits(num_frames: int, interval: int | None) -> None:
    with pytest.raises(InvalidInput):
        Sampling(num_frames, interval)


def test_captions_are_kept_whole_or_refused() -> None:
    assert clean_caption("  a #dog\n on a beach ") == "a #dog\n on a beach"
    assert clean_caption(" \n") is None
    assert clean_caption(None) is None
    with pytest.raises(InvalidInput, match="100,000"):
        clean_caption("a" * 100_000)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "../../etc", "a\\b", ".hidden", "ends.", "bell\x07", "x" * 201])
def test_a_category_is_a_folder_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="category"):
        clean_category(name)


def test_ordinary_categories_pass() -> None:
    assert clean_category(" St. Bernards, big ") == "St. Bernards, big"
    assert clean_category("動物") == "動物"
    assert clean_category("  ") is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\clip.mp4", "clip.mp4"),
        ("a\r\nSet-Cookie: x.mp4", "a Set-Cookie: x.mp4"),
        ("", "video"),
        ("/", "video"),
        (None, "video"),
    ],
)
def test_file_names_never_climb(given: str | None, kept: str) -> None:
    assert clean_filename(given) == kept


def test_a_title_is_one_line() -> None:
    assert clean_title("two\nlines\x00") == "two lines"
    with pytest.raises(InvalidInput, match="title"):
        clean_title("x" * 201)
