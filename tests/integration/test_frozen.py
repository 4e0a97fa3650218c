"""Tests that open and use databases of each earlier release.

The dumps in `assets/databases` were written by the code of their release. Each has six synthetic clips with vectors
of the model `tiny`, four captions, and a seventh clip that was queued. From revision 0002 on, each also has a
projection. The bytes of the seventh clip lie beside the dumps. A new revision of the schema gets its dump when it
is released.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from service.bootstrap import Runtime
from service.database import change_log, db, vector_rows, video_rows
from service.embedding.encoder import Encoder
from service.generations import generations
from service.ingestion.ingest import check_metadata
from service.media import Decoder
from service.models import Sampling, Weights
from service.worker.worker import Worker
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.oracle import Item, rank, same
from tests.support.paths import ASSETS
from tests.support.queries import like_video

FROZEN = ASSETS / "databases"
REVISIONS = sorted(path.stem for path in FROZEN.glob("*.sql"))


@pytest.fixture(params=REVISIONS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, tiny: Encoder, decoder: Decoder) -> Iterator[Runtime]:
    """Yield the library of that revision, opened by the current code."""
    data = tmp_path / "data"
    data.mkdir()
    connection = sqlite3.connect(data / "reelsrs.db")
    connection.executescript((FROZEN / f"{request.param}.sql").read_text())
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(request.param,)]
    (sha256,) = connection.execute("SELECT sha256 FROM videos WHERE status = 'queued'").fetchone()
    connection.close()
    target = data / "media" / sha256[:2] / sha256 / "video"
    target.parent.mkdir(parents=True)
    shutil.copy(FROZEN / "queued.mp4", target)
    runtime = Runtime(settings_for(data), model=tiny, decoder=decoder)
    assert runtime.initialise() == tiny.generation, "the model is the same, and nothing is embedded again"
    yield runtime
    runtime.close()


def _config(runtime: Runtime) -> Config:
    config = Config()
    config.set_main_option("script_location", str(db.migrations_folder()))
    config.attributes["url"] = runtime.settings.database
    return config


def _items(runtime: Runtime) -> list[Item]:
    items = []
    with runtime.db.read() as connection:
        for video in video_rows.list_videos(connection, status="ready", limit=100):
            vectors = vector_rows.vectors_by_kind(connection, video.pk, runtime.serving.generation, "mean", "text")
            text = vectors["text"][0] if "text" in vectors else None
            assert (text is None) == (video.caption is None)
            items.append(Item(video.id, vectors["mean"][0], text, video.category))
    return items


def _check(runtime: Runtime, count: int) -> None:
    """Check that all search results follow the specification, computed from the vectors in the database."""
    items = _items(runtime)
    assert len(items) == count
    for item in items:
        answer = like_video(runtime.serving.recommender, item.id, weights=Weights(0.7, 0.3))
        expected = rank(items, item.v, item.t, 0.7, 0.3, without=item.id)
        same([(hit.video.id, hit.score) for hit in answer.hits], expected)


def test_every_revision_but_the_one_in_the_making_is_frozen() -> None:
    config = Config()
    config.set_main_option("script_location", str(db.migrations_folder()))
    revisions = sorted(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())
    assert revisions == REVISIONS


def test_what_a_release_left_is_upgraded_and_used(opened: Runtime, make_clip: ClipMaker) -> None:
    command.check(_config(opened))  # raises if the schema differs from the models in the code
    with opened.db.read() as connection:
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
        assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []
        frozen = video_rows.list_videos(connection, limit=100)
        last = change_log.last_change(connection, opened.serving.generation.id)
    assert len(frozen) == 7
    _check(opened, 6)
    Worker(opened).run_until_idle()  # the clip queued in the dump is embedded now
    _check(opened, 7)
    late = next(video for video in frozen if video.category == "late")
    opened.ingest.edit(late.id, {"caption": "an edit", "category": None})
    _check(opened, 7)
    opened.ingest.delete(next(video for video in frozen if video.id != late.id).id)
    _check(opened, 6)
    clip = make_clip("new.mp4", numbered(9))
    with opened.ingest.receive() as incoming:
        incoming.write(clip.read_bytes())
        incoming.finish()
        opened.ingest.accept(incoming, check_metadata("new.mp4", sampling=Sampling(3), caption="new"))
    Worker(opened).run_until_idle()
    _check(opened, 7)
    with opened.db.read() as connection:
        assert change_log.last_change(connection, opened.serving.generation.id) > last
        (state,) = generations.states(connection)
    assert (state.status, state.embedded, state.total) == ("active", 7, 7)
    state_of_map = opened.projections.fit_and_wait(opened.projections.spec("aggregated", "pca", 2))
    assert (state_of_map.status, state_of_map.points, state_of_map.missing) == ("ready", 7, 0)
