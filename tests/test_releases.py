"""A library of each released schema is opened by today's code, upgraded, and used."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from service import catalog, db
from service.domain import Sampling, Weights
from service.embedder import Embedder
from service.ingest import describe
from service.runtime import Runtime
from service.video import Decoder
from service.worker import Worker
from tests.ask import like_video
from tests.conftest import ClipMaker, numbered, settings_for
from tests.oracle import Item, rank, same

DATABASES = Path(__file__).parent / "assets" / "databases"
RELEASES = sorted(path.stem for path in DATABASES.glob("*.sql"))


def _opened(tmp_path: Path, release: str) -> Path:
    """A data folder with the database of a release in it, and the bytes of the clip that was queued."""
    data = tmp_path / "data"
    late = (DATABASES / "late.mp4").read_bytes()
    sha256 = hashlib.sha256(late).hexdigest()
    folder = data / "media" / sha256[:2] / sha256
    folder.mkdir(parents=True)
    (folder / "video").write_bytes(late)
    connection = sqlite3.connect(data / "reelsrs.db")
    connection.executescript((DATABASES / f"{release}.sql").read_text(encoding="utf-8"))
    connection.close()
    return data


def _items(runtime: Runtime) -> list[Item]:
    """What the oracle ranks: every vector as it stands in the rows."""
    items = []
    with runtime.db.read() as connection:
        generation = runtime.generation()
        for key in catalog.ready_keys(connection):
            video = catalog.video_by_key(connection, key)
            found = catalog.kinds(connection, key, generation, "mean", "text")
            text = found.get("text")
            items.append(Item(video.id, found["mean"][0], None if text is None else text[0], video.category))
    return items


def _expect(runtime: Runtime) -> int:
    """Recommendations are NumPy's, for every video and several weights; how many videos there are."""
    items = _items(runtime)
    for item in items:
        for w_v, w_t in ((0.7, 0.3), (1, 0), (0, 1)):
            if item.t is None and w_v == 0:
                continue
            answer = like_video(runtime.recommender, item.id, weights=Weights(w_v, w_t), k=20)
            expected = rank(items, item.v, item.t, w_v, w_t, without=item.id)
            same([(hit.video.id, hit.score) for hit in answer.hits], expected)
    return len(items)


def test_there_is_one_of_each_schema() -> None:
    revisions = sorted(path.name[:4] for path in (db.migrations_folder() / "versions").glob("[0-9]*.py"))
    assert revisions == RELEASES


@pytest.mark.parametrize("release", RELEASES)
def test_a_library_of_a_release_is_upgraded_and_used(
    tmp_path: Path, release: str, tiny: Embedder, decoder: Decoder, make_clip: ClipMaker
) -> None:
    data = _opened(tmp_path, release)
    before = sqlite3.connect(data / "reelsrs.db")
    assert before.execute("SELECT version_num FROM alembic_version").fetchone() == (release,)
    vectors = before.execute("SELECT video_key, kind, vectors FROM embeddings ORDER BY 1, 2").fetchall()
    before.close()

    runtime = Runtime(settings_for(data))
    runtime._model, runtime.__dict__["decoder"] = tiny, decoder
    runtime.activate()
    with runtime.db.read() as connection:
        now = connection.execute(sa.text("SELECT video_key, kind, vectors FROM embeddings ORDER BY 1, 2"))
        assert [tuple(row) for row in now] == vectors
        assert catalog.status_counts(connection) == {"ready": 6, "queued": 1}
    assert _expect(runtime) == 6
    if release >= "0002":
        assert [(one.status, one.points) for one in runtime.atlas.all()] == [("ready", 6)]

    while Worker(runtime)._step():  # what was queued then
        pass
    assert _expect(runtime) == 7
    spec = runtime.atlas.spec("aggregated", "pca", 2)
    state = runtime.atlas.ready(spec, progress=lambda _: None)
    assert state.points == 7
    names = [item.id for item in _items(runtime)]
    runtime.ingest.edit(names[0], {"caption": "other words", "category": "other"})
    runtime.ingest.delete(names[1])
    with runtime.ingest.receive() as incoming:
        incoming.write(make_clip("new.mp4", numbered(8)).read_bytes())
        incoming.finish()
        runtime.ingest.accept(incoming, describe("new.mp4", sampling=Sampling(2), caption="new"))
    while Worker(runtime)._step():
        pass
    assert _expect(runtime) == 7
    assert runtime.atlas.bring_up(state.id).points == 7
    assert runtime.follower.differences() == []

    config = Config()
    config.set_main_option("script_location", str(db.migrations_folder()))
    config.attributes["url"] = runtime.settings.database
    command.check(config)  # raises where the models and the migrated schema differ
    del runtime.__dict__["decoder"]  # others use it after this one
    runtime.close()
