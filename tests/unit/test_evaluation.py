"""Tests of the evaluation's arithmetic: measures equal plain loops, ranks equal those of a search, intervals cover."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.models import Fusion, Weights
from service.operations.evaluation import figures
from service.operations.evaluation.bootstrap import Bootstrap, Interval
from service.operations.evaluation.evaluate import Evaluation, evaluate
from service.operations.evaluation.figures import Figure, Options
from service.operations.evaluation.library import Common, common_videos, read_catalogue
from service.operations.evaluation.measures import (
    NO_CATEGORY,
    Catalogue,
    Queries,
    Setting,
    blocks,
    evenly,
    ndcg,
    own_precisions,
    own_ranks,
    recall,
    reciprocal,
    relevant_ranks,
)
from service.search.query import QueryVector
from tests.support.queries import like, like_video
from tests.support.vector_library import GENERATION, D, VectorLibrary, fill, unit

SETTINGS = [
    (Weights(video, text), fusion)
    for video, text in ((1.0, 0.0), (0.7, 0.3), (0.2, 0.8), (3.0, 5.0))
    for fusion in ("cosine", "zscore")
]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[VectorLibrary]:
    """Yield forty videos with several frames, a third without captions, some equal to others."""
    made = VectorLibrary(tmp_path)
    rng = np.random.default_rng(5)
    fill(made, rng, 28)
    for _ in range(12):
        middle = unit(rng)
        frames = np.stack([unit(rng) * 0.5 + middle for _ in range(int(rng.integers(1, 6)))])
        frames = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).astype(np.float32)
        made.add(middle, unit(rng) if rng.random() < 0.7 else None, str(rng.choice(["a", "b"])), frames)
    yield made
    made.close()


def _read(library: VectorLibrary) -> tuple[Common, Catalogue, list[str]]:
    with library.db.read() as connection:
        common = common_videos(connection, [GENERATION])
        catalogue = read_catalogue(connection, GENERATION, common, "mean")
    names = {pk: name for name, pk in library.keys.items()}
    return common, catalogue, [names[pk] for pk in common.video_pks.tolist()]


def _settings(weights: Weights, fusion: str) -> list[Setting]:
    checked: Fusion = "cosine" if fusion == "cosine" else "zscore"
    return [Setting(weights, checked)]


@pytest.mark.parametrize(("weights", "fusion"), SETTINGS)
def test_a_caption_ranks_its_clip_as_a_search_does_in_the_library_without_that_caption(
    library: VectorLibrary, weights: Weights, fusion: str
) -> None:
    _, catalogue, names = _read(library)
    rows = np.flatnonzero(catalogue.has_text)
    ranks = own_ranks(catalogue, Queries.captions(catalogue, rows), _settings(weights, fusion))[0]
    assert len(rows) > 20
    for row, rank in zip(rows.tolist(), ranks.tolist(), strict=True):
        text = library.items[names[row]].t
        library.caption(names[row], None)
        query = QueryVector(catalogue.text[row], catalogue.text[row])
        answer = like(library.recommender, query, weights=weights, fusion=fusion, k=100)
        library.caption(names[row], text)
        own = next(hit.score for hit in answer.hits if hit.video.id == names[row])
        # Against the product: of equal scores, the own clip is the last.
        assert rank == sum(hit.score >= own - 1e-6 for hit in answer.hits), names[row]


@pytest.mark.parametrize(("weights", "fusion"), SETTINGS)
def test_scores_and_neighbours_are_those_of_a_recommendation(
    library: VectorLibrary, weights: Weights, fusion: str
) -> None:
    _, catalogue, names = _read(library)
    rows = np.arange(len(names))
    queries = Queries.videos(catalogue, rows)
    settings = _settings(weights, fusion)
    scores = np.concatenate([found.scores(settings[0])[0] for _, found in blocks(catalogue, queries)])
    precisions = own_precisions(catalogue, queries, settings, (5, 10))[0]
    for row, name in enumerate(names):
        answer = like_video(library.recommender, name, weights=weights, fusion=fusion, k=100)
        expected = {hit.video.id: hit.score for hit in answer.hits}
        found = {other: float(scores[row, n]) for n, other in enumerate(names) if other != name}
        assert found == pytest.approx(expected, abs=2e-5)
        assert scores[row, row] == -np.inf
        own = library.items[name].category
        by_category = sorted(
            answer.hits, key=lambda hit: (-round(hit.score, 5), own is not None and hit.video.category == own)
        )
        for place, k in enumerate((5, 10)):
            if own is not None:
                share = sum(hit.video.category == own for hit in by_category[:k]) / k
                assert precisions[place, row] == pytest.approx(share), (name, k)


def test_moments_equal_a_plain_loop(library: VectorLibrary) -> None:
    common, _, names = _read(library)
    with library.db.read() as connection:
        group = figures.moments(connection, GENERATION, common, Options())
    expected = []
    for name in names:
        frames = [vector.astype(float) for _, vector in library.items[name].frames]
        if len(frames) < 2:
            continue
        ranks = []
        for number, frame in enumerate(frames):
            best = {
                other: max(
                    float(frame @ vector)
                    for n, (_, vector) in enumerate(library.items[other].frames)
                    if (other, n) != (name, number)
                )
                for other in names
            }
            ranks.append(1 + sum(value >= best[name] - 1e-6 for other, value in best.items() if other != name))
        shares = [np.mean([rank <= k for rank in ranks]) for k in (1, 5)]
        expected.append([*shares, np.mean([1 / rank for rank in ranks])])
    assert group.names == ("recall@1", "recall@5", "mrr")
    assert group.left_out == len(names) - len(expected) > 0
    np.testing.assert_allclose(group.values, expected)


def test_figures_count_their_queries_and_know_chance(library: VectorLibrary) -> None:
    common, catalogue, names = _read(library)
    options = Options()
    rows = figures.caption_rows(catalogue, 2000, 0)
    groups, _ = figures.captions(catalogue, rows, options)
    assert [group.left_out for group in groups] == [sum(library.items[name].t is None for name in names)] * 2
    assert groups[0].chances[:2] == pytest.approx((1 / len(names), 5 / len(names)))
    lone = library.add(unit(np.random.default_rng(1)), None, "alone")
    _, catalogue, names = _read(library)
    visual, text, _ = figures.categories(catalogue, options)
    outside = [name for name in names if library.items[name].category is None or name == lone]
    assert visual.left_out == len(outside)
    assert text.left_out == len({*outside, *(name for name in names if library.items[name].t is None)})
    shares = [
        sum(library.items[other].category == library.items[name].category for other in names if other != name)
        for name in names
        if name not in outside
    ]
    assert visual.chances[0] == pytest.approx(np.mean(shares) / (len(names) - 1))
    assert len(common.names) == 3


def test_ties_count_against_the_relevant_item() -> None:
    same = np.tile(np.eye(4, dtype=np.float32)[0], (6, 1))
    catalogue = Catalogue(same, same, np.ones(6, np.bool_), np.array([0, 0, 1, 1, 1, NO_CATEGORY]))
    rows = np.arange(6)
    setting = [Setting(Weights(1, 0), "cosine")]
    assert own_ranks(catalogue, Queries.captions(catalogue, rows), setting).tolist() == [[6.0] * 6]
    precisions = own_precisions(catalogue, Queries.videos(catalogue, rows[:5]), setting, (2, 5))[0]
    assert precisions[0].tolist() == [0.0] * 5, "four or three others of another category come first"
    assert precisions[1].tolist() == [0.2, 0.2, 0.4, 0.4, 0.4]
    scores = np.array([0.5, 0.5, 0.7, 0.5 + 5e-7, 0.1], dtype=np.float32)
    assert relevant_ranks(scores, 1e-6, np.array([0])).tolist() == [4.0]
    assert relevant_ranks(scores, 1e-6, np.array([0, 4, 2])).tolist() == [1.0, 4.0, 5.0]


def test_measures_equal_their_definitions() -> None:
    ranks = np.array([1.0, 2.0, 5.0, 6.0, 40.0])
    assert recall(ranks, 5).tolist() == [1, 1, 1, 0, 0]
    assert reciprocal(ranks).mean() == pytest.approx(sum(1 / rank for rank in (1, 2, 5, 6, 40)) / 5)
    gain = 1 / math.log2(2 + 1) + 1 / math.log2(5 + 1)
    best = sum(1 / math.log2(rank + 1) for rank in (1, 2, 3))
    assert ndcg(np.array([2.0, 5.0, 11.0]), 10) == pytest.approx(gain / best)
    assert ndcg(np.arange(1.0, 21), 10) == pytest.approx(1)
    assert evenly(10, 1).tolist() == [5]
    assert evenly(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert evenly(3, 5).tolist() == [0, 1, 2]


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    population = (rng.random(100_000) < 0.7) * rng.choice([1.0, 0.5, 1 / 3], 100_000)
    covered = 0
    for draw in range(300):
        interval = Bootstrap(draw, 1_000).intervals(rng.choice(population, 150)[:, None])[0]
        covered += interval.low <= population.mean() <= interval.high
    assert 0.92 <= covered / 300 <= 0.98


def test_intervals_are_seeded_and_paired() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((3_000, 2))
    first, again = Bootstrap(1).intervals(values), Bootstrap(1).intervals(values)
    assert first == again
    assert first[0] != Bootstrap(2).intervals(values)[0]
    better = Bootstrap(1).intervals(values + 0.01)
    shift = Bootstrap(1).intervals((values + 0.01) - values)[0]
    assert (shift.low, shift.high) == pytest.approx((0.01, 0.01)), "paired: the same queries in both"
    assert better[0].low == pytest.approx(first[0].low + 0.01)
    assert shift.verdict == "better"
    assert Interval(-0.1, -0.2, -0.05).verdict == "worse"
    assert Interval(0.1, 0.0, 0.2).verdict == "no clear difference"


def _figure(found: Evaluation, measure: str, ranking: str, name: str) -> Figure:
    return next(
        one for one in found.generations[0].figures if (one.measure, one.ranking, one.name) == (measure, ranking, name)
    )


def test_a_curve_meets_the_figures_at_their_setting(library: VectorLibrary) -> None:
    found = evaluate(library.db, [GENERATION], Options(curves=True))
    points = {
        (one.curve, one.aggregation, one.fusion, one.weights.video, one.frames, one.name): one.interval
        for one in found.generations[0].curves
    }
    figure = _figure(found, "captions", "visual", "recall@5").interval
    assert points["weights", "mean", "cosine", 1.0, None, "recall@5"] == figure
    assert points["frames", "mean", "cosine", 1.0, 5, "recall@5"] == figure, "all frames"
    fused = _figure(found, "captions", "fused", "mrr").interval
    assert points["weights", "mean", "zscore", 0.7, None, "mrr"].value == pytest.approx(fused.value)
    assert ("weights", "max", "zscore", 0.0, None, "precision@5") in points
    assert ("weights", "max", "zscore", 0.0, None, "recall@5") not in points


def test_a_great_library_is_sampled_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    catalogue = Catalogue(vectors, vectors, np.ones(20_000, np.bool_), rng.integers(0, 5, 20_000))
    sizes = [part.stop - part.start for part, _ in blocks(catalogue, Queries.videos(catalogue, np.arange(450)))]
    assert sum(sizes) == 450
    assert max(sizes) == 200
    assert len(figures.caption_rows(catalogue, 2_000, 0)) == 2_000
    assert (figures.caption_rows(catalogue, 50, 0) == figures.caption_rows(catalogue, 50, 0)).all()
