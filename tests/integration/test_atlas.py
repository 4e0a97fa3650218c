"""Tests of projections: request, fit, storage, new points, and changes of the library during their life."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.database import change_log, db, projection_jobs, projection_rows, vector_rows, video_rows
from service.database.db import Database
from service.database.projection_rows import Embedding, Projection
from service.errors import InvalidInput, NotFound, ReelsError
from service.ingestion.ingest import Ingest
from service.models import Embeddings
from service.projections.projections import Projections
from service.projections.reduction import Method
from service.projections.steps import Cancelled
from service.vectors import aggregate, normalise
from tests.support.maps_library import GENERATION, D, Library
from tests.support.rows import add_row


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    made = Library(tmp_path)
    yield made
    made.db.close()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("embedding", "count"), [("aggregated", 120), ("frame", 360), ("text", 60)])
def test_a_map_has_a_point_for_every_embedding(
    library: Library, embedding: Embedding, count: int, dimensions: int
) -> None:
    library.add(120, category="a")
    state = library.fitted(embedding, dimensions=dimensions)
    assert (state.status, state.progress, state.points, state.transformed, state.missing) == ("ready", 1.0, count, 0, 0)
    assert state.quality is not None
    assert 0.5 < state.quality["trustworthiness"] <= 1
    points = library.projections.points(state)
    assert points.coordinates.shape == (count, dimensions)
    assert set(points.categories) == {"a"}
    if embedding == "frame":
        assert points.frames[:4].tolist() == [0, 1, 2, 0]
        assert points.times[:4].tolist() == [0.5, 1.5, 2.5, 0.5]
    else:
        assert set(points.frames.tolist()) == {-1}
        assert np.isnan(points.times).all()


def test_the_same_question_is_the_same_map_and_another_one_is_not(library: Library) -> None:
    library.add(8)
    spec = library.projections.spec("aggregated", "umap", 2)
    first, queued = library.projections.request(spec)
    again, queued_again = library.projections.request(
        library.projections.spec("aggregated", "umap", 2, parameters={"n_neighbors": 15})
    )
    assert (queued, queued_again, again.id) == (True, False, first.id)
    for other in (
        replace(spec, seed=1),
        replace(spec, dimensions=3),
        replace(spec, category="a"),
        replace(spec, kind="max"),
        replace(spec, parameters={"n_neighbors": 5, "min_dist": 0.1}),
    ):
        assert library.projections.request(other)[0].id != first.id


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("dimensions", {"dimensions": 4}),
        ("seed", {"seed": -1}),
        ("parameters.n_neighbors", {"parameters": {"n_neighbors": 1}}),
        ("parameters.perplexity", {"parameters": {"perplexity": 5}}),
    ],
)
def test_a_wrong_question_is_named(library: Library, field: str, given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as error:
        library.projections.spec(**{"embedding": "aggregated", "method": "umap", "dimensions": 2, **given})  # type: ignore[arg-type]
    assert error.value.field == field


@pytest.mark.parametrize("method", ["umap", "tsne", "pca"])
def test_new_videos_are_placed_and_nothing_else_moves(library: Library, method: Method) -> None:
    library.add(150)
    before = library.fitted(method=method)
    at = library.coordinates(before)
    new = library.add(3)
    twin = library.add(near=library.centres[0])[0]
    library.projections.update_all()
    after = library.projections.find(before.id)
    now = library.coordinates(after)
    assert (after.points, after.transformed, after.missing) == (154, 4, 0)
    assert after.version > before.version
    assert {key: now[key] for key in at} == at
    # Each new point is near points of the same cluster centre.
    owner = {video: number % 4 for number, video in enumerate(library.video_pks)}
    for number, video in enumerate([*new, twin]):
        place = np.array(now[(video, -1)])
        order = sorted(at, key=lambda key: float(np.linalg.norm(np.array(at[key]) - place)))
        centre = 0 if video == twin else (150 + number) % 4
        kin = [owner[near] == centre for near, _ in order[:10]]
        assert sum(kin) >= (6 if method == "pca" else 9), (video, kin)


def test_a_place_does_not_depend_on_who_else_comes(library: Library, tmp_path: Path) -> None:
    library.add(130)
    library.fitted(method="umap")
    other = tmp_path / "other"
    shutil.copytree(library.folder, other / "atlas")
    library.db.close()
    shutil.copy(tmp_path / "reelsrs.db", other / "reelsrs.db")
    library.db = Database(f"sqlite:///{tmp_path}/reelsrs.db")
    library.projections = Projections(library.db, library.folder, lambda: GENERATION, "mean")
    state = library.fitted(method="umap")
    first, second = library.add(), library.add()
    library.projections.update_all()
    together = library.coordinates(state)
    with library.db.read() as connection:
        wanted = vector_rows.vectors_of(connection, library.video_pks.values(), GENERATION, "mean")
    apart = Database(f"sqlite:///{other}/reelsrs.db")
    alone = Projections(apart, other / "atlas", lambda: GENERATION, "mean")
    with apart.write() as connection:  # the second video alone, with the same vector
        video = add_row(connection, 999)
        vector = wanted[library.video_pks[second[0]]]
        vector_rows.put_embeddings(connection, video.pk, GENERATION, Embeddings(vector, vector[0], vector[0], None))
        video_rows.update_video(connection, video.pk, status="ready", frame_times=[0.5])
        change_log.record_change(connection, video.pk)
    alone.update_all()
    points = alone.points(alone.find(state.id))
    assert tuple(points.coordinates[points.ids.index(video.id)].tolist()) == together[(second[0], -1)]
    assert (first[0], -1) in together
    apart.close()


def test_a_map_of_tsne_in_three_dimensions_says_what_it_lacks(library: Library) -> None:
    library.add(120)
    state = library.fitted(method="tsne", dimensions=3)
    library.add(2)
    library.projections.update_all()
    after = library.projections.find(state.id)
    assert (after.points, after.transformed, after.missing, after.version) == (120, 0, 2, state.version)
    assert not library.projections.update_all()  # no endless retries
    fresh = library.projections.fit_and_wait(after.spec, refit=True)
    assert (fresh.points, fresh.missing) == (122, 0)


def test_what_is_deleted_leaves_every_map(library: Library) -> None:
    ids = library.add(120)
    state = library.fitted()
    library.delete(ids[0])
    library.projections.update_all()
    after = library.projections.find(state.id)
    assert after.points == 119
    assert after.version > state.version
    assert (ids[0], -1) not in library.coordinates(after)


def test_another_caption_is_another_place_on_maps_of_captions_alone(library: Library) -> None:
    ids = library.add(240)
    texts, pictures = library.fitted("text"), library.fitted("aggregated")
    at, seen = library.coordinates(texts), library.coordinates(pictures)
    changed = next(video for video, _ in at)
    with library.db.write() as connection:
        vector_rows.put_text(connection, library.video_pks[changed], GENERATION, library.centres[3])
        change_log.record_change(connection, library.video_pks[changed])
    assert (changed, -1) not in library.coordinates(texts)
    library.projections.update_all()
    now = library.coordinates(texts)
    assert now.keys() == at.keys()
    assert now[(changed, -1)] != at[(changed, -1)]
    assert library.coordinates(pictures) == seen
    assert len(ids) == 240


def test_a_map_of_one_category_follows_who_is_in_it(library: Library, tmp_path: Path) -> None:
    cats = library.add(110, category="cats")
    library.add(20, category="dogs")
    state = library.projections.fit_and_wait(library.projections.spec("aggregated", "pca", 2, category="cats"))
    assert state.points == 110
    ingest = Ingest(library.db, None, None, None, max_upload_bytes=1)  # type: ignore[arg-type]
    ingest.edit(cats[0], {"category": "dogs"})
    new = library.add(category="cats")
    library.add(category="dogs")
    library.projections.update_all()
    after = library.projections.find(state.id)
    assert (after.points, after.transformed) == (110, 1)
    assert {video for video, _ in library.coordinates(after)} == {*cats[1:], *new}


def test_a_small_map_is_laid_out_anew_each_time_it_doubles(library: Library) -> None:
    state = library.fitted()
    assert (state.status, state.points, state.quality) == ("ready", 0, None)
    fits = 0
    for _ in range(16):
        library.add()
        library.projections.update_all()
        if library.projections.find(state.id).status == "queued":
            fits += 1
            library.projections.fit_and_wait(state.spec)
    after = library.projections.find(state.id)
    assert (after.points, fits) == (16, 5)  # at 1, 2, 4, 8 and 16 videos


@pytest.mark.parametrize("method", ["umap", "tsne", "pca"])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_few_videos_are_a_map_too(library: Library, method: Method, count: int) -> None:
    library.add(count)
    for dimensions in (2, 3):
        state = library.fitted(method=method, dimensions=dimensions)
        assert (state.status, state.points) == ("ready", count)
        assert np.isfinite(library.projections.points(state).coordinates).all()


def test_copies_are_a_map_too(library: Library) -> None:
    library.add(30, near=library.centres[1])
    state = library.fitted(method="umap")
    assert np.isfinite(library.projections.points(state).coordinates).all()


def test_a_layout_can_be_cancelled_and_asked_for_again(library: Library) -> None:
    library.add(120)
    spec = library.projections.spec("aggregated", "pca", 2)
    state, _ = library.projections.request(spec)
    with library.db.write() as connection:
        assert projection_jobs.claim(connection, "me") == state.pk

    def cancel(_: float) -> None:
        library.projections.cancel(state.id)

    with pytest.raises(Cancelled):
        library.projections.run_fit(state.pk, "me", cancel)
    cancelled = library.projections.find(state.id)
    assert (cancelled.status, cancelled.error, cancelled.points) == ("failed", "cancelled", 0)
    again, queued = library.projections.request(spec)
    assert (again.id, again.status, queued) == (state.id, "queued", True)
    # A cancelled refit keeps the points of the earlier fit.
    done = library.fitted()
    library.projections.refit(done.id)
    kept = library.projections.cancel(done.id)
    assert (kept.status, kept.points) == ("ready", 120)
    library.projections.refit(done.id)
    assert library.projections.find(done.id).points == 120


def test_a_lease_runs_out_and_another_takes_over(library: Library) -> None:
    library.add(5)
    state, _ = library.projections.request(library.projections.spec("aggregated", "pca", 2))
    with library.db.write() as connection:
        assert projection_jobs.claim(connection, "dead", lease_seconds=-1) == state.pk
        assert projection_jobs.claim(connection, "alive") == state.pk
        assert projection_jobs.claim(connection, "third") is None
    with pytest.raises(Cancelled):
        library.projections.run_fit(state.pk, "dead")
    library.projections.run_fit(state.pk, "alive")
    assert library.projections.find(state.id).status == "ready"


def test_what_goes_wrong_is_said_and_the_old_points_stay(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.add(120)
    state = library.fitted()

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room for the layout")

    monkeypatch.setattr("service.projections.reduction.fit", broken)
    with pytest.raises(ReelsError, match="no room for the layout"):
        library.projections.fit_and_wait(state.spec, refit=True)
    after = library.projections.find(state.id)
    assert (after.status, after.error, after.points) == ("failed", "no room for the layout", 120)


def test_a_fault_in_placing_is_said_and_not_tried_for_ever(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.add(120)
    state = library.fitted()

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no place")

    monkeypatch.setattr("service.projections.reduction.transform", broken)
    library.add()
    assert library.projections.update_all()
    after = library.projections.find(state.id)
    assert (after.status, after.error, after.points, after.missing) == (
        "failed",
        "placing new points failed: no place",
        120,
        1,
    )
    assert not library.projections.update_all()
    again, queued = library.projections.request(state.spec)
    assert (queued, again.points) == (True, 120)


def test_a_map_whose_vectors_are_lost_is_laid_out_anew(library: Library) -> None:
    ids = library.add(120)
    state = library.fitted("frame", "umap")
    for path in library.folder.iterdir():
        path.unlink()
    with library.db.write() as connection:  # frames other than those that the projection was fitted to
        frames = normalise(library.random.normal(size=(5, D)))
        vector_rows.put_embeddings(connection, library.video_pks[ids[0]], GENERATION, aggregate(frames, None))
        video_rows.update_video(connection, library.video_pks[ids[0]], frame_times=[0.1, 0.2, 0.3, 0.4, 0.5])
        change_log.record_change(connection, library.video_pks[ids[0]])
    assert library.projections.update_all()
    assert library.projections.find(state.id).status == "queued"
    assert library.fitted("frame", "umap").points == 362


def test_maps_of_the_same_videos_share_their_vectors_and_their_graph(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.add(130)
    flat = library.fitted(method="tsne")
    names = sorted(path.name for path in library.folder.iterdir())
    assert [name.split(".", 1)[1] for name in names] == ["91.npz", "npy"]

    def never(*_: object) -> None:
        raise AssertionError("the graph is there already")

    monkeypatch.setattr("service.index.graph.neighbours", never)
    library.fitted(method="umap")
    deep = library.fitted(method="umap", dimensions=3)
    assert sorted(path.name for path in library.folder.iterdir()) == names
    for state in (flat, deep, library.fitted(method="umap")):
        library.projections.delete(state.id)
    assert list(library.folder.iterdir()) == []
    with pytest.raises(NotFound):
        library.projections.find(flat.id)


def test_files_that_are_lost_are_made_again(library: Library) -> None:
    ids = library.add(130)
    state = library.fitted(method="umap")
    late = library.add()[0]
    library.projections.update_all()
    with library.db.write() as connection:  # as if it had never been placed
        connection.execute(db.coordinates.delete().where(db.coordinates.c.placed))
        projection_rows.record_applied_change(connection, state.pk, state.applied_change, changed=True)
    wanted = library.coordinates(library.projections.find(state.id))
    for path in library.folder.iterdir():
        path.unlink()
    library.projections.update_all()
    found = library.coordinates(library.projections.find(state.id))
    assert found.keys() - wanted.keys() == {(late, -1)}
    assert (library.folder / f"{_basis(library, state)}.npy").exists()
    # This also works if some of the fitted videos are deleted by now.
    for path in library.folder.iterdir():
        path.unlink()
    library.delete(ids[0])
    new = library.add()
    library.projections.update_all()
    assert (new[0], -1) in library.coordinates(library.projections.find(state.id))


def _basis(library: Library, state: Projection) -> str:
    with library.db.read() as connection:
        return projection_rows.stored_fit(connection, state.pk)[0]


def test_a_video_that_changes_while_a_map_is_laid_out_is_placed_by_what_it_is_then(library: Library) -> None:
    ids = library.add(240)
    state, _ = library.projections.request(library.projections.spec("text", "pca", 2))
    with library.db.write() as connection:
        projection_jobs.claim(connection, "me")
    captioned, deleted = library.video_pks[ids[1]], ids[3]
    told: list[float] = []

    def change(done: float) -> None:
        if not told:
            with library.db.write() as connection:
                vector_rows.put_text(connection, captioned, GENERATION, library.centres[2])
                change_log.record_change(connection, captioned)
            library.delete(deleted)
        told.append(done)

    library.projections.run_fit(state.pk, "me", change)
    assert told == sorted(told)
    laid_out = library.projections.find(state.id)
    assert laid_out.points == 118
    library.projections.update_all()
    after = library.projections.find(state.id)
    assert (after.points, after.transformed, after.missing) == (119, 1, 0)
    at = library.coordinates(after)
    assert (deleted, -1) not in at
