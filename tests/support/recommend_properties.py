"""Tests of all kinds of queries against the oracle, for every vector engine.

They cover random libraries, weights, examples, filters, pages, ties and changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from service.database import jobs, video_rows
from service.errors import Gone, InvalidInput, NotFound, NotReady
from service.models import Weights
from service.search.query import Cursor, QueryVector, Reference, Scope, SearchQuery
from service.vectors import normalise
from tests.support.drawn_libraries import FUSIONS, WEIGHTS, MilvusAt, through_libraries
from tests.support.oracle import best, diverse, moments, same, score
from tests.support.queries import like, like_video
from tests.support.rows import add_row
from tests.support.vector_library import VectorLibrary, change, fill, unit


class RecommendProperties:
    """Search tests. A subclass overrides the fixture `milvus_at` if Milvus holds the vectors."""

    def examples(self, wanted: int) -> int:
        """Return the number of examples to try, at most that of hypothesis's profile; slow engines reduce it."""
        return min(wanted, settings.default.max_examples)

    @pytest.fixture
    def milvus_at(self) -> MilvusAt:
        """Return no address: FAISS holds the vectors."""
        return lambda _: ""

    @pytest.fixture
    def library(self, tmp_path: Path, milvus_at: MilvusAt) -> Iterator[VectorLibrary]:
        """Open an empty library."""
        made = VectorLibrary(tmp_path, milvus=milvus_at(tmp_path))
        yield made
        made.close()

    @through_libraries(
        60,
        seed=st.integers(0, 2**32 - 1),
        weights=WEIGHTS,
        fusion=FUSIONS,
        k=st.integers(1, 30),
        kind=st.sampled_from(["one video", "several", "words", "picture", "clip", "mixed"]),
        diversity=st.sampled_from([0.0, 0.0, 0.2, 0.7, 1.0]),
        scoped=st.booleans(),
        cut=st.booleans(),
    )
    def test_answers_equal_the_oracle_through_changes(
        self,
        library: VectorLibrary,
        seed: int,
        weights: tuple[float, float],
        fusion: str,
        k: int,
        kind: str,
        diversity: float,
        scoped: bool,
        cut: bool,
    ) -> None:
        rng = np.random.default_rng(seed)
        fill(library, rng, int(rng.integers(2, 40)))
        w_v, w_t = weights
        for _ in range(4):
            names = [str(name) for name in rng.permutation(list(library.items))]
            vector = unit(rng)
            strangers: list[tuple[np.ndarray, np.ndarray | None, float]] = {
                "words": [(vector, vector, 1.0)],
                "picture": [(vector, vector, 2.5)],
                "clip": [(vector, None, 1.0)],
                "mixed": [(vector, vector, 1.5)],
            }.get(kind, [])
            signed = {"one video": [1.0], "several": [2.0, -0.5, 1.0][: len(names)], "mixed": [1.0, -1.0]}.get(kind, [])
            liked = list(zip(names, signed, strict=False))
            excluded = tuple(names[len(liked) : len(liked) + 1]) if cut else ()
            items = list(library.items.values())
            examples = [*strangers, *((library.items[name].v, library.items[name].t, weight) for name, weight in liked)]
            query: dict[str, Any] = {
                "references": tuple(Reference(name, weight) for name, weight in liked),
                "vectors": tuple(QueryVector(*one) for one in strangers),
                "exclude": (*excluded, "nobody"),
                "weights": Weights(w_v, w_t),
                "fusion": fusion,
                "k": k,
                "diversity": diversity,
                "scope": Scope(category=("a", "b"), exclude_category=("b",)) if scoped else Scope(),
            }
            captioned = any(t is not None for _, t, _ in examples)
            if not captioned and w_v == 0:
                with pytest.raises(InvalidInput, match="no caption"):
                    library.recommender.search(SearchQuery(**query))
            else:
                without = {*excluded, *(name for name, _ in liked)}
                scores = score(items, examples, w_v, w_t, fusion=fusion)
                ranked = best(
                    {
                        item.id: scores[item.id]
                        for item in items
                        if item.id not in without and (not scoped or item.category == "a")
                    }
                )
                middle = len(ranked) // 2
                if cut and middle and ranked[middle - 1][1] - ranked[middle][1] > 1e-4:  # else rounding would decide
                    query["min_score"] = (ranked[middle - 1][1] + ranked[middle][1]) / 2
                    ranked = ranked[:middle]
                answer = library.recommender.search(SearchQuery(**query))
                found = [(hit.video.id, hit.score) for hit in answer.hits]
                if diversity:
                    pool = ranked[: max(100, min(10 * k, k + 1000))]
                    taken = diverse(items, examples, pool, w_v, w_t, fusion, diversity, k)
                    assert [name for name, _ in found] == taken
                    same(found, [(name, scores[name]) for name in taken])
                else:
                    same(found, ranked[:k])
                assert answer.weights == Weights(w_v, w_t if captioned else 0.0)
                for number, hit in enumerate(answer.hits, 1):
                    assert hit.rank == number
                    assert hit.visual.contribution + hit.text.contribution == pytest.approx(hit.score, abs=1e-5)
                    assert hit.text.imputed == (library.items[hit.video.id].t is None)
            change(library, rng)

    @through_libraries(30, seed=st.integers(0, 2**32 - 1), fusion=FUSIONS, k=st.integers(1, 25))
    def test_moments_equal_the_oracle_through_changes(
        self, library: VectorLibrary, seed: int, fusion: str, k: int
    ) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(int(rng.integers(2, 12))):
            # Frames that stay similar for a while, as frames of a clip do.
            scenes = [unit(rng) for _ in range(3)]
            frames = np.stack([normalise(scenes[n // 3] + 0.3 * unit(rng)) for n in range(int(rng.integers(1, 9)))])
            library.add(frames[0], None, str(rng.choice(["a", "b"])), frames)
        for _ in range(4):
            vector = unit(rng)
            answer = like(
                library.recommender,
                QueryVector(vector, vector),
                weights=Weights(0.7, 0.3),
                fusion=fusion,
                k=k,
                group_by="moment",
            )
            expected = moments(list(library.items.values()), vector, fusion)[:k]
            same([(hit.video.id, hit.score) for hit in answer.hits], [one[:2] for one in expected])
            shown = [(hit.video.id, hit.moment.time, hit.moment.start, hit.moment.end) for hit in answer.hits]
            assert shown == [(one[0], *one[2:]) for one in expected]
            assert answer.weights == Weights(0.7, 0.0)
            change(library, rng)

    @pytest.mark.parametrize("fusion", ["cosine", "zscore"])
    @pytest.mark.parametrize("k", [1, 5])
    def test_moments_among_far_more_frames_than_are_looked_at(
        self, library: VectorLibrary, fusion: str, k: int
    ) -> None:
        """All pages, unfiltered and by category; moments of equal score in one clip follow their time."""
        rng = np.random.default_rng(31)
        peak = unit(rng)
        twice = library.add(peak, None, "a", np.stack([peak, -peak, peak]))
        for number in range(80):
            shown = np.stack([normalise(peak + 1.5 * unit(rng)) for _ in range(6)])
            library.add(shown[0], None, "ab"[number % 2], shown)
        for query in (peak, unit(rng)):
            expected = moments(list(library.items.values()), query, fusion)
            for scope in (Scope(), Scope(("a",)), Scope(exclude_category=("a",))):
                kept = [one for one in expected if not scope.category or library.items[one[0]].category == "a"]
                kept = [one for one in kept if library.items[one[0]].category not in scope.exclude_category]
                parameters = {"weights": Weights(1, 0), "fusion": fusion, "group_by": "moment", "scope": scope}
                cursor, found = None, []
                for _ in range(4):
                    answer = like(library.recommender, QueryVector(query, None), **parameters, k=k, cursor=cursor)
                    assert [hit.rank for hit in answer.hits] == list(range(len(found) + 1, len(found) + k + 1))
                    assert answer.fusion == fusion
                    for hit in answer.hits:
                        similarity = float(query @ library.items[hit.video.id].frames[hit.moment.frame][1])
                        assert hit.moment.similarity == hit.visual.similarity == pytest.approx(similarity, abs=1e-6)
                        assert (hit.visual.weight, hit.visual.contribution) == (1, hit.score)
                        assert (hit.text.similarity, hit.text.weight) == (None, 0)
                    found += [(hit.video.id, hit.score, hit.moment.time) for hit in answer.hits]
                    cursor = answer.next_cursor
                    assert cursor
                wanted = [one[:3] for one in kept[: 4 * k]]
                assert [one[::2] for one in found] == [one[::2] for one in wanted]
                assert [one[1] for one in found] == pytest.approx([one[1] for one in wanted], abs=1e-5)
                least = (kept[k][1] + kept[k + 1][1]) / 2
                good = like(library.recommender, QueryVector(query, None), **parameters, k=200, min_score=least)
                assert [(hit.video.id, hit.moment.time) for hit in good.hits] == [one[:3:2] for one in kept[: k + 1]]
                assert good.next_cursor is None
                if query is peak and "a" not in scope.exclude_category:
                    assert [one[::2] for one in found[:2]] == [(twice, 0.5), (twice, 2.5)]

    def test_moments_of_the_category_of_an_example(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(32)
        names = fill(library, rng, 20)
        name = next(one for one in names if library.items[one].category == "a")
        for mode, expected in (("same", {"a"}), ("other", {"b", "c", None})):
            scope = Scope(category_mode=mode)  # type: ignore[arg-type]
            weights = Weights(1, 0)
            answer = like_video(library.recommender, name, weights=weights, k=50, group_by="moment", scope=scope)
            assert {hit.video.category for hit in answer.hits} == expected
            assert name not in {hit.video.id for hit in answer.hits}

    @through_libraries(
        30,
        seed=st.integers(0, 2**32 - 1),
        fusion=FUSIONS,
        k=st.integers(1, 7),
        way=st.sampled_from(["best", "diverse", "moment"]),
    )
    def test_pages_stay_consistent_while_videos_come_and_go(
        self, library: VectorLibrary, seed: int, fusion: str, k: int, way: str
    ) -> None:
        rng = np.random.default_rng(seed)
        fill(library, rng, 20)
        vector = unit(rng)
        before = set(library.items)
        rest: dict[str, Any] = {"diverse": {"diversity": 0.4}, "moment": {"group_by": "moment"}}.get(way, {})
        shown: list[tuple[str, int]] = []
        orders: list[tuple[float, str]] = []
        gone: set[str] = set()
        cursor: str | None = None
        for page in range(40):
            answer = like(
                library.recommender,
                QueryVector(vector, vector),
                weights=Weights(0.7, 0.3),
                fusion=fusion,
                k=k,
                cursor=cursor,
                **rest,
            )
            assert [hit.rank for hit in answer.hits] == list(range(len(shown) + 1, len(shown) + 1 + len(answer.hits)))
            shown += [(hit.video.id, hit.moment.frame if way == "moment" else 0) for hit in answer.hits]
            orders += [(-round(hit.score, 9), hit.video.id) for hit in answer.hits]
            cursor = answer.next_cursor
            if cursor is None:
                break
            if page < 4:
                library.add(unit(rng), unit(rng))
                left = [name for name in library.items if name in before]
                gone.add(str(rng.choice(left)))
                library.delete(next(name for name in gone if name in library.items))
        assert cursor is None
        assert len(shown) == len(set(shown)), "a hit was shown twice"
        assert before - gone <= {name for name, _ in shown}, "a video that was there all the time was left out"
        if way != "diverse":
            assert orders == sorted(orders), "a page goes back before the one ahead of it"

    def test_a_page_of_another_question_or_of_what_has_changed_is_refused(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(11)
        names = fill(library, rng, 12)
        name = next(one for one in names if library.items[one].t is not None)
        query: dict[str, Any] = {"weights": Weights(0.7, 0.3), "k": 3}
        cursor = like_video(library.recommender, name, **query).next_cursor
        assert cursor
        assert like_video(library.recommender, name, cursor=cursor, **query).hits[0].rank == 4
        assert like_video(library.recommender, name, cursor=cursor, weights=Weights(0.7, 0.3), k=5).hits[0].rank == 4
        for other in ({"weights": Weights(1, 0)}, {"min_score": 0.1}, {"diversity": 0.5}, {"scope": Scope(("a",))}):
            with pytest.raises(InvalidInput, match="cursor"):
                like_video(library.recommender, name, cursor=cursor, **{**query, **other})
        for broken in (
            "",
            "x",
            cursor[:-4],
            cursor[4:],
            "A" * 100_000,
            "e30",
            Cursor("q", "s", ((0, 1), (0, 1)), 1).encode(),
        ):
            with pytest.raises(InvalidInput, match="cursor"):
                like_video(library.recommender, name, cursor=broken, **query)
        library.caption(name, unit(rng))
        with pytest.raises(Gone, match="without a cursor"):
            like_video(library.recommender, name, cursor=cursor, **query)

    def test_questions_that_cannot_be_asked(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(12)
        names = fill(library, rng, 3)
        ok: dict[str, Any] = {"references": (Reference(names[0]),), "weights": Weights(1, 1), "fusion": "cosine"}
        for field, wrong in {
            "k": {"k": 0},
            "diversity": {"diversity": 1.5},
            "min_score": {"min_score": float("nan")},
            "positive": {"references": ()},
            "video_weight": {"weights": Weights(0, 1), "group_by": "moment"},
            "negative": {"references": (Reference("x"), Reference("y", -1), Reference("x", -0.1))},
        }.items():
            with pytest.raises(InvalidInput) as caught:
                SearchQuery(**{**ok, **wrong})
            assert caught.value.field == field
        with pytest.raises(InvalidInput, match="diversity"):
            SearchQuery(**ok, diversity=0.5, group_by="moment")
        for weight in (0.0, float("nan"), float("inf")):
            with pytest.raises(InvalidInput, match="weight"):
                Reference("x", weight)
        only_unlike = SearchQuery(references=(Reference(names[0], -1),), weights=Weights(1, 0), fusion="cosine")
        assert {hit.video.id for hit in library.recommender.search(only_unlike).hits} == set(names[1:])
        with pytest.raises(InvalidInput, match="category_mode"):
            library.recommender.search(
                SearchQuery(
                    references=(Reference(names[0], -1),),
                    weights=Weights(1, 0),
                    fusion="cosine",
                    scope=Scope(category_mode="same"),
                )
            )

    @pytest.mark.parametrize("fusion", ["cosine", "zscore"])
    @pytest.mark.parametrize("weights", [(1, 0), (0.7, 0.3), (0.5, 0.5), (0, 1)])
    def test_filters_are_exact(self, library: VectorLibrary, fusion: str, weights: tuple[float, float]) -> None:
        rng = np.random.default_rng(5)
        fill(library, rng, 60)
        name = next(item.id for item in library.items.values() if item.t is not None and item.category == "a")
        cases = {
            Scope(category=("a",)): lambda item: item.category == "a",
            Scope(category=("a", "b")): lambda item: item.category in ("a", "b"),
            Scope(exclude_category=("a",)): lambda item: item.category != "a",
            Scope(category=("a", "b"), exclude_category=("b",)): lambda item: item.category == "a",
            Scope(category_mode="same"): lambda item: item.category == "a",
            Scope(category_mode="other"): lambda item: item.category != "a",
            Scope(category=("b",), category_mode="same"): lambda _: False,
            Scope(category=("nobody",)): lambda _: False,
        }
        for scope, keep in cases.items():
            answer = like_video(library.recommender, name, weights=Weights(*weights), fusion=fusion, k=50, scope=scope)  # type: ignore[arg-type]
            library.expect(answer, name, *weights, fusion, 50, keep)

    def test_same_and_other_of_a_video_without_a_category(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(6)
        fill(library, rng, 30)
        name = next(item.id for item in library.items.values() if item.category is None)
        for mode, expected in (("same", True), ("other", False)):
            answer = like_video(library.recommender, name, weights=Weights(1, 0), k=50, scope=Scope(category_mode=mode))  # type: ignore[arg-type]
            assert answer.hits
            assert all((hit.video.category is None) is expected for hit in answer.hits)

    def test_ties_break_by_id_however_many_there_are(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(7)
        twin, text = unit(rng), unit(rng)
        name = library.add(unit(rng), unit(rng))
        twins = [library.add(twin, text) for _ in range(150)]
        for k in (1, 10, 100, 150):
            answer = like_video(library.recommender, name, weights=Weights(0.7, 0.3), k=k)
            assert [hit.video.id for hit in answer.hits] == sorted(twins)[:k]

    def test_a_query_without_a_caption_says_the_weights_it_used(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(8)
        name = library.add(unit(rng), None)
        library.add(unit(rng), unit(rng))
        answer = like_video(library.recommender, name, weights=Weights(0.7, 0.3))
        assert answer.weights == Weights(0.7, 0.0)
        assert answer.hits[0].text.similarity is None
        assert answer.hits[0].text.contribution == 0

    def test_one_video_alone_has_no_neighbour(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(9)
        name = library.add(unit(rng), unit(rng))
        assert like_video(library.recommender, name, weights=Weights(1, 1)).hits == ()
        assert like_video(library.recommender, name, weights=Weights(1, 1), fusion="zscore").hits == ()

    def test_videos_that_are_not_there_or_not_ready(self, library: VectorLibrary) -> None:
        name = library.add(unit(np.random.default_rng(1)), None)
        with pytest.raises(NotFound, match="nobody"):
            like_video(library.recommender, "nobody", weights=Weights(1, 0))
        with library.db.write() as connection:
            jobs.enqueue(connection, library.keys[name])
        with pytest.raises(NotReady) as caught:
            like_video(library.recommender, name, weights=Weights(1, 0))
        assert caught.value.status == "queued"

    def test_lookalikes_are_the_videos_with_the_nearest_frames(self, library: VectorLibrary) -> None:
        rng = np.random.default_rng(21)
        frames = np.stack([unit(rng) for _ in range(26)])
        name = library.add(frames[0], None, frames=frames)
        for _ in range(110):
            library.add(frames[0], None, frames=np.stack([unit(rng) for _ in range(2)]))
        copies = [library.add(frame, None) for frame in frames[:2]]  # every third frame includes only the first
        nearest = {
            library.keys[item.id]: max(float(shown @ looked) for _, shown in item.frames for looked in frames[::3])
            for item in library.items.values()
            if item.id != name
        }
        order = sorted(nearest, key=lambda key: (-round(nearest[key], 6), key))
        with library.db.read() as connection:
            video = video_rows.video(connection, name)
        found = library.recommender.near_duplicate_candidates(video)
        assert [one.pk for one in found] == order[:100]
        assert found[0].id == copies[0]
        with library.db.write() as connection:
            queued = add_row(connection, 999)
        assert library.recommender.near_duplicate_candidates(queued) == []
