"""Tests of search queries and cursors: valid cursors survive encoding, invalid input is refused."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import Gone, InvalidInput
from service.models import Weights
from service.search.query import (
    EVERYWHERE,
    MAX_CURSOR_CHARACTERS,
    MAX_DEPTH,
    Cursor,
    QueryVector,
    Reference,
    Scope,
    SearchQuery,
)

ONE = SearchQuery(weights=Weights(1, 1), fusion="cosine", references=(Reference("a"),))
CURSOR = Cursor("q", "s", ((0.1, 0.2), (0.3, 0.4)), 7, (-0.5, "name", 3), (4, 5))


@contextmanager
def _not_ours(reason: str) -> Iterator[None]:
    """Expect that a cursor is refused with this cause, which only the traceback shows."""
    with _refused("cursor", "is not valid: use the `next_cursor` of an earlier page, unchanged") as caught:
        yield
    assert re.fullmatch(reason, str(caught.value.__cause__))


def _refused(field: str, words: str) -> Any:
    return pytest.raises(InvalidInput, match=rf"^{field}: {words}$")


def _example(weight: float = 1.0) -> QueryVector:
    return QueryVector(np.ones(2, np.float32), None, weight)


def test_a_question_has_the_defaults_that_are_documented() -> None:
    assert (ONE.k, ONE.diversity, ONE.min_score, ONE.group_by, ONE.cursor) == (10, 0.0, None, "video", None)
    assert (ONE.scope, ONE.exclude, ONE.vectors) == (EVERYWHERE, (), ())
    assert Scope((), (), "any") == EVERYWHERE
    assert (Reference("a").weight, _example().weight) == (1.0, 1.0)


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf"), -float("inf"), 1e6 + 1, -1e6 - 1])
def test_a_weight_is_a_number_that_counts(weight: float) -> None:
    for make in (lambda: Reference("a", weight), lambda: _example(weight)):
        with _refused("weight", "must be a number greater than 0 and at most 1000000, not .*"):
            make()


def test_weights_up_to_a_million_are_taken_on_both_sides() -> None:
    for weight in (1e6, -1e6, 1e-9, 0.5):
        assert Reference("a", weight).weight == _example(weight).weight == weight


def test_something_must_be_given_to_be_like() -> None:
    with _refused("positive", "needs at least one reference video, in positive or in negative"):
        replace(ONE, references=())
    assert replace(ONE, references=(), vectors=(_example(),)).references == ()
    assert replace(ONE, references=(Reference("a", -1),)).references[0].weight == -1


def test_nothing_is_both_liked_and_disliked() -> None:
    with _refused("negative", "must not contain b, which is also in positive"):
        replace(ONE, references=(Reference("c"), Reference("b"), Reference("b", -1), Reference("c", -1)))
    replace(ONE, references=(Reference("a"), Reference("b", -1), Reference("a", 2)))


@pytest.mark.parametrize("diversity", [-0.01, 1.01, float("nan")])
def test_diversity_is_from_0_to_1(diversity: float) -> None:
    with _refused("diversity", "must be a number from 0 to 1, not .*"):
        replace(ONE, diversity=diversity)
    assert replace(ONE, diversity=1.0).diversity == 1.0


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_the_smallest_score_is_a_number(score: float) -> None:
    with _refused("min_score", "must be a finite number, not .*"):
        replace(ONE, min_score=score)
    assert replace(ONE, min_score=-3.0).min_score == -3.0


@pytest.mark.parametrize("k", [0, 1001])
def test_k_has_bounds(k: int) -> None:
    with _refused("k", f"must be from 1 to 1000, not {k}"):
        replace(ONE, k=k)


def test_moments_are_seen_and_not_diverse() -> None:
    with _refused("diversity", "applies to videos only: omit it with group_by=moment"):
        replace(ONE, group_by="moment", diversity=0.5)
    with _refused("video_weight", "must be greater than 0 with group_by=moment: moments have only visual similarity"):
        replace(ONE, group_by="moment", weights=Weights(0, 1))
    assert replace(ONE, group_by="moment", weights=Weights(1, 0)).group_by == "moment"
    assert replace(ONE, weights=Weights(0, 1), diversity=0.5).group_by == "video"


def test_every_part_of_a_question_is_in_its_digest_but_the_page() -> None:
    others = [
        {"references": (Reference("b"),)},
        {"references": (Reference("a", 2),)},
        {"references": (Reference("a"), Reference("b"))},
        {"vectors": (_example(),)},
        {"vectors": (_example(2),)},
        {"exclude": ("b",)},
        {"exclude": ("b", "c")},
        {"weights": Weights(2, 1)},
        {"weights": Weights(1, 2)},
        {"fusion": "zscore"},
        {"scope": Scope(("a",))},
        {"scope": Scope((), ("a",))},
        {"scope": Scope((), (), "same")},
        {"diversity": 0.5},
        {"min_score": 0.5},
        {"group_by": "moment"},
    ]
    digests = [ONE.digest(), *(replace(ONE, **other).digest() for other in others)]  # type: ignore[arg-type]
    assert len(set(digests)) == len(digests)
    assert replace(ONE, k=3, cursor="x").digest() == ONE.digest()
    assert replace(ONE, exclude=("c", "b")).digest() == replace(ONE, exclude=("b", "c")).digest()


def test_a_digest_is_the_same_in_the_next_release() -> None:
    """Cursors issued before an upgrade must stay valid after the upgrade."""
    assert ONE.digest() == "ea1514b554a0ebf2"


@pytest.mark.parametrize(
    "cursor",
    [
        CURSOR,
        replace(CURSOR, after=None),
        replace(CURSOR, shown=()),
        replace(CURSOR, offset=MAX_DEPTH),
        Cursor("", "", ((0.0, 0.0), (0.0, 0.0)), 0),
    ],
)
def test_a_cursor_is_read_as_it_was_written(cursor: Cursor) -> None:
    text = cursor.encode()
    assert Cursor.decode(text) == cursor
    assert text.isascii()
    assert not set(text) & set("=+/&?#% ")


def test_a_cursor_is_read_whatever_its_length_leaves_of_padding() -> None:
    lengths = set()
    for count in range(1, 9):
        cursor = replace(CURSOR, query_digest="q" * count, shown=tuple(range(count)))
        lengths.add(len(cursor.encode()) % 4)
        assert Cursor.decode(cursor.encode()) == cursor
    assert len(lengths) > 1


def _written(*parts: Any) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(parts).encode())).decode().rstrip("=")


GOOD: dict[str, Any] = {
    "query_digest": "q",
    "state": "s",
    "statistics": [[0.1, 0.2], [0.3, 0.4]],
    "offset": 7,
    "after": [-0.5, "name", 3],
    "shown": [4, 5],
}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"statistics": [[0.1, 0.2], [0.3, "x"]]}, "not a finite number"),
        ({"statistics": [["x", 0.2], [0.3, 0.4]]}, "not a finite number"),
        ({"statistics": [[0.1, float("nan")], [0.3, 0.4]]}, "not a finite number"),
        ({"statistics": [[0.1, 0.2], [float("inf"), 0.4]]}, "not a finite number"),
        ({"statistics": [[0.1, 0.2]]}, "not enough values to unpack.*"),
        ({"statistics": None}, "cannot unpack.*"),
        ({"offset": -1}, "not an integer in range"),
        ({"offset": 1.5}, "not an integer in range"),
        ({"offset": True}, "not an integer in range"),
        ({"offset": "7"}, "not an integer in range"),
        ({"offset": MAX_DEPTH + 1}, "too many hits"),
        ({"after": ["x", "name", 3]}, "not a finite number"),
        ({"after": [float("nan"), "name", 3]}, "not a finite number"),
        ({"after": [0.5, 3, 3]}, "not a hit"),
        ({"after": [0.5, "name", -1]}, "not an integer in range"),
        ({"after": [0.5, "name", 1.5]}, "not an integer in range"),
        ({"after": [0.5, "name"]}, "not a hit"),
        ({"after": [0.5, "name", 3, 4]}, "not a hit"),
        ({"after": []}, "not a hit"),
        ({"shown": [-1]}, "not an integer in range"),
        ({"shown": [1.5]}, "not an integer in range"),
        ({"shown": [1 << 62]}, "not an integer in range"),
        ({"shown": list(range(MAX_DEPTH + 1))}, "too many hits"),
        ({"shown": None}, ".*must be an iterable.*"),
    ],
    ids=str,
)
def test_a_cursor_that_was_made_up_is_refused(wrong: dict[str, Any], reason: str) -> None:
    assert Cursor.decode(_written(*GOOD.values())) == CURSOR
    with _not_ours(reason):
        Cursor.decode(_written(*(GOOD | wrong).values()))


def test_the_largest_numbers_of_a_cursor_are_read() -> None:
    assert Cursor.decode(_written(*(GOOD | {"shown": [(1 << 62) - 1, 0], "offset": 0}).values())).offset == 0
    assert len(Cursor.decode(_written(*(GOOD | {"shown": list(range(MAX_DEPTH))}).values())).shown) == MAX_DEPTH


@pytest.mark.parametrize(
    "text", ["", "x", "äöü", "A" * 40, CURSOR.encode()[:-6], _written(1), "?", _written(*GOOD.values(), 1)]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with _refused("cursor", "is not valid: use the `next_cursor` of an earlier page, unchanged"):
        Cursor.decode(text)


def test_a_cursor_is_not_unpacked_without_bound() -> None:
    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * (1 << 25) + json.dumps(list(GOOD.values())).encode()))
    with _not_ours("incomplete"):
        Cursor.decode(bomb.decode())
    nested = base64.urlsafe_b64encode(zlib.compress(b"[" * 100_000 + b"]" * 100_000)).decode()
    with _not_ours("incomplete"):
        Cursor.decode(nested)
    deep = base64.urlsafe_b64encode(zlib.compress(b"[" * 20_000 + np.random.default_rng(1).bytes(9000))).decode()
    with _refused("cursor", "is not valid: use the `next_cursor` of an earlier page, unchanged"):
        Cursor.decode(deep)
    with _not_ours("too long"):
        Cursor.decode("A" * (MAX_CURSOR_CHARACTERS + 1))


def test_a_cursor_of_the_greatest_length_is_read() -> None:
    rng = np.random.default_rng(1)
    shown = tuple(rng.integers(1 << 62, size=5000).tolist())
    while len(text := replace(CURSOR, shown=shown).encode()) > MAX_CURSOR_CHARACTERS:
        shown = shown[:-5]
    assert len(text) > MAX_CURSOR_CHARACTERS - 200
    assert Cursor.decode(text).shown == shown


def test_a_cursor_belongs_to_one_question_and_one_state() -> None:
    CURSOR.check("q", "s")
    with _refused("cursor", "belongs to another query: send it with the parameters of the first page"):
        CURSOR.check("other", "s")
    with pytest.raises(
        Gone,
        match=r"^cursor: the model or the query's vectors changed after the first page; start again without a cursor$",
    ):
        CURSOR.check("q", "other")
