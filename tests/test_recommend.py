"""Every answer against the oracle: random libraries, weights, filters, missing captions, ties, changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import catalog, db, jobs
from service.db import Database
from service.domain import Generation, Probe, Sampling, Weights
from service.embedder import Embedder
from service.errors import InvalidInput, NotFound, NotReady, Unavailable
from service.follower import Follower
from service.recommend import Answer, Recommender, Scope
from service.vectors import aggregate, normalise
from tests.oracle import Item, rank, same

D = 12
GENERATION = Generation("g-test", "test", D, "float32")
PROBE = Probe("video/mp4", "h264", 64, 48, 1.0, 10.0)


class Library:
    """A catalogue of made-up vectors, and the oracle's copy of it."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder}/reelsrs.db"
        db.upgrade(url)
        self.db = Database(url)
        with self.db.write() as connection:
            catalog.activate_generation(connection, GENERATION)
        self.follower = Follower(self.db, folder / "index", GENERATION, "mean")
        self.recommender = Recommender(self.db, self.follower, "mean", self._no_model)
        self.items: dict[str, Item] = {}
        self.keys: dict[str, int] = {}
        self._count = 0

    @staticmethod
    def _no_model() -> Embedder:
        raise AssertionError("no model is needed for a question about vectors")

    def add(self, v: np.ndarray, t: np.ndarray | None, category: str | None = None) -> str:
        """A ready video with one frame."""
        self._count += 1
        with self.db.write() as connection:
            video = catalog.add_video(
                connection,
                sha256=f"{self._count:064x}",
                size_bytes=1,
                filename="a.mp4",
                title="a",
                caption=None if t is None else "caption",
                category=category,
                sampling=Sampling(1),
                probe=PROBE,
            )
            catalog.put_embeddings(connection, video.key, GENERATION, aggregate(v[None], t))
            catalog.update_video(connection, video.key, status="ready", frame_times=[0.0])
            catalog.record_change(connection, video.key)
        self.items[video.id] = Item(video.id, v, t, category)
        self.keys[video.id] = video.key
        return video.id

    def caption(self, name: str, t: np.ndarray | None) -> None:
        """Change a caption's vector."""
        with self.db.write() as connection:
            catalog.put_text(connection, self.keys[name], GENERATION, t)
            catalog.record_change(connection, self.keys[name])
        old = self.items[name]
        self.items[name] = Item(name, old.v, t, old.category)

    def delete(self, name: str) -> None:
        """Remove a video."""
        with self.db.write() as connection:
            catalog.delete_video(connection, self.keys[name])
        del self.items[name]

    def expect(
        self, answer: Answer, name: str, w_v: float, w_t: float, fusion: str, k: int, keep: object = None
    ) -> None:
        """The oracle agrees, and every breakdown adds up."""
        query = self.items[name]
        expected = rank(list(self.items.values()), query.v, query.t, w_v, w_t, fusion=fusion, without=name, keep=keep)[
            :k
        ]
        same([(hit.video.id, hit.score) for hit in answer.hits], expected)
        for hit in answer.hits:
            assert hit.video_part.contribution + hit.text_part.contribution == pytest.approx(hit.score, abs=1e-5)
            assert hit.text_part.imputed == (self.items[hit.video.id].t is None)
            assert hit.moment.frame == 0
        assert [hit.rank for hit in answer.hits] == list(range(1, len(answer.hits) + 1))
        assert answer.weights == Weights(w_v, 0.0 if query.t is None else w_t)
        assert answer.exact


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """An empty one."""
    return Library(tmp_path)


def _unit(rng: np.random.Generator) -> np.ndarray:
    return normalise(rng.standard_normal(D))


def _fill(library: Library, rng: np.random.Generator, count: int) -> list[str]:
    """Random videos; a third without a caption, some of them copies of one another."""
    names: list[str] = []
    for _ in range(count):
        copied = library.items[rng.choice(names)] if names and rng.random() < 0.15 else None
        v = copied.v if copied else _unit(rng)
        t = copied.t if copied else None if rng.random() < 0.33 else _unit(rng)
        names.append(library.add(v, t, rng.choice(["a", "b", "c", None])))
    return names


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    weights=st.tuples(st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5]), st.sampled_from([0.0, 0.3, 0.7, 1.0])).filter(any),
    fusion=st.sampled_from(["cosine", "zscore"]),
    k=st.integers(1, 30),
)
def test_answers_equal_the_oracle_through_changes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, weights: tuple[float, float], fusion: str, k: int
) -> None:
    rng = np.random.default_rng(seed)
    library = Library(tmp_path_factory.mktemp("library"))
    _fill(library, rng, int(rng.integers(1, 25)))
    for _ in range(4):
        name = str(rng.choice(list(library.items)))
        w_v, w_t = weights
        if library.items[name].t is None and w_v == 0:
            with pytest.raises(InvalidInput, match="no caption"):
                library.recommender.like_video(name, weights=Weights(w_v, w_t), k=k)
        else:
            answer = library.recommender.like_video(name, weights=Weights(w_v, w_t), fusion=fusion, k=k)  # type: ignore[arg-type]
            library.expect(answer, name, w_v, w_t, fusion, k)
        change = rng.integers(4)
        if change == 0 or len(library.items) < 3:
            library.add(_unit(rng), _unit(rng))
        elif change == 1:
            library.delete(name)
        else:
            library.caption(name, None if change == 2 else _unit(rng))
    library.db.close()


@pytest.mark.parametrize("fusion", ["cosine", "zscore"])
@pytest.mark.parametrize("weights", [(1, 0), (0.7, 0.3), (0.5, 0.5), (0, 1)])
def test_filters_are_exact(library: Library, fusion: str, weights: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    _fill(library, rng, 60)
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
        answer = library.recommender.like_video(name, weights=Weights(*weights), fusion=fusion, k=50, scope=scope)  # type: ignore[arg-type]
        library.expect(answer, name, *weights, fusion, 50, keep)


def test_same_and_other_of_a_video_without_a_category(library: Library) -> None:
    rng = np.random.default_rng(6)
    _fill(library, rng, 30)
    name = next(item.id for item in library.items.values() if item.category is None)
    for mode, expected in (("same", True), ("other", False)):
        answer = library.recommender.like_video(name, weights=Weights(1, 0), k=50, scope=Scope(category_mode=mode))  # type: ignore[arg-type]
        assert answer.hits
        assert all((hit.video.category is None) is expected for hit in answer.hits)


def test_ties_break_by_id_however_many_there_are(library: Library) -> None:
    rng = np.random.default_rng(7)
    twin, text = _unit(rng), _unit(rng)
    name = library.add(_unit(rng), _unit(rng))
    twins = [library.add(twin, text) for _ in range(150)]
    for k in (1, 10, 100, 150):
        answer = library.recommender.like_video(name, weights=Weights(0.7, 0.3), k=k)
        assert [hit.video.id for hit in answer.hits] == sorted(twins)[:k]


def test_a_query_without_a_caption_says_the_weights_it_used(library: Library) -> None:
    rng = np.random.default_rng(8)
    name = library.add(_unit(rng), None)
    library.add(_unit(rng), _unit(rng))
    answer = library.recommender.like_video(name, weights=Weights(0.7, 0.3))
    assert answer.weights == Weights(0.7, 0.0)
    assert answer.hits[0].text_part.similarity is None
    assert answer.hits[0].text_part.contribution == 0


def test_one_video_alone_has_no_neighbour(library: Library) -> None:
    rng = np.random.default_rng(9)
    name = library.add(_unit(rng), _unit(rng))
    assert library.recommender.like_video(name, weights=Weights(1, 1)).hits == ()
    assert library.recommender.like_video(name, weights=Weights(1, 1), fusion="zscore").hits == ()


def test_videos_that_are_not_there_or_not_ready(library: Library) -> None:
    name = library.add(_unit(np.random.default_rng(1)), None)
    with pytest.raises(NotFound, match="nobody"):
        library.recommender.like_video("nobody", weights=Weights(1, 0))
    with library.db.write() as connection:
        jobs.enqueue(connection, library.keys[name])
    with pytest.raises(NotReady) as caught:
        library.recommender.like_video(name, weights=Weights(1, 0))
    assert caught.value.status == "queued"


def test_text_questions_equal_the_oracle(tmp_path: Path, tiny: Embedder) -> None:
    url = f"sqlite:///{tmp_path}/reelsrs.db"
    db.upgrade(url)
    database = Database(url)
    with database.write() as connection:
        catalog.activate_generation(connection, tiny.generation)
    items = []
    rng = np.random.default_rng(2)
    for number in range(20):
        v = normalise(rng.standard_normal(tiny.generation.dimension))
        t = normalise(rng.standard_normal(tiny.generation.dimension)) if number % 3 else None
        with database.write() as connection:
            video = catalog.add_video(
                connection,
                sha256=str(number),
                size_bytes=1,
                filename="",
                title="",
                caption=None,
                category=None,
                sampling=Sampling(1),
                probe=PROBE,
            )
            catalog.put_embeddings(connection, video.key, tiny.generation, aggregate(v[None], t))
            catalog.update_video(connection, video.key, status="ready", frame_times=[0.0])
            catalog.record_change(connection, video.key)
        items.append(Item(video.id, v, t))
    follower = Follower(database, tmp_path / "index", tiny.generation, "mean")
    recommender = Recommender(database, follower, "mean", lambda: tiny)
    query = tiny.embed_texts(["a red circle"])[0]
    for fusion in ("zscore", "cosine"):
        answer = recommender.by_text("a red circle", weights=Weights(0.7, 0.3), fusion=fusion, k=20)  # type: ignore[arg-type]
        same([(hit.video.id, hit.score) for hit in answer.hits], rank(items, query, query, 0.7, 0.3, fusion=fusion))
    assert recommender.by_text("x", weights=Weights(1, 1)).fusion == "zscore"
    with pytest.raises(InvalidInput, match="query"):
        recommender.by_text("  ", weights=Weights(1, 1))
    with pytest.raises(InvalidInput, match="category_mode"):
        recommender.by_text("x", weights=Weights(1, 1), scope=Scope(category_mode="same"))
    other = Follower(database, tmp_path / "index", Generation("g-other", "other", D, "float32"), "mean")
    with pytest.raises(Unavailable, match="another model"):
        Recommender(database, other, "mean", lambda: tiny).by_text("x", weights=Weights(1, 1))
    database.close()
