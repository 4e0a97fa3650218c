"""Tests specific to vectors in Milvus: crashes, losses, several processes, rebuilds.

`tests/support/recommend_properties.py` tests that search results equal those of the oracle.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusException

from service import config
from service.database import change_log, generation_rows, vector_rows
from service.errors import ConfigurationError, Unavailable
from service.generations import generations
from service.index.milvus import MilvusIndex
from service.models import Generation, Weights
from service.operations import doctor
from service.search.query import Scope
from service.search.recommender import Recommender
from service.timing import Timing
from service.vectors import aggregate
from tests.support import services
from tests.support.queries import like_video
from tests.support.vector_library import GENERATION, VectorLibrary, change, fill, unit
from tests.support.wait import until

TABLE = "reelsrs_"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Return the address of a Milvus Lite database."""
    return str(tmp_path / "vectors.db")


@pytest.fixture
def library(tmp_path: Path, uri: str) -> Iterator[VectorLibrary]:
    """Open a library of thirty videos."""
    made = VectorLibrary(tmp_path, milvus=uri)
    fill(made, np.random.default_rng(1), 30)
    yield made
    made.close()


def _agrees(library: VectorLibrary, recommender: Recommender | None = None) -> None:
    """Check results with both fusions against the oracle.

    They depend on candidates, the running statistics of both parts and imputed captions.
    """
    name = next(one for one, item in library.items.items() if item.t is not None)
    for fusion in ("cosine", "zscore"):
        answer = like_video(recommender or library.recommender, name, weights=Weights(0.6, 0.4), fusion=fusion, k=50)
        library.expect(answer, name, 0.6, 0.4, fusion, 50)


def _collections(library: VectorLibrary) -> set[str]:
    assert isinstance(library.follower, MilvusIndex)
    return set(library.follower.client.list_collections())


def _name(library: VectorLibrary) -> str:
    assert isinstance(library.follower, MilvusIndex)
    return library.follower.collection


@pytest.mark.parametrize("step", ["before it is sent", "half sent", "before it is struck out"])
def test_a_crash_on_the_way_is_made_good_by_the_next(
    library: VectorLibrary, uri: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _agrees(library)
    rng = np.random.default_rng(3)
    for _ in range(12):
        change(library, rng)

    class Crash(Exception):
        pass

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    follower = library.follower
    assert isinstance(follower, MilvusIndex)
    upsert, query = follower.client.upsert, follower.client.query

    def half(name: str, rows: list[Any], **options: Any) -> None:
        upsert(name, rows[: len(rows) // 2], **options)
        crash()

    def settled(*arguments: Any, **options: Any) -> Any:
        return crash() if options.get("consistency_level") == "Strong" else query(*arguments, **options)

    if step == "before it is sent":
        monkeypatch.setattr(follower.client, "delete", crash)
        monkeypatch.setattr(follower.client, "upsert", crash)
    elif step == "half sent":
        monkeypatch.setattr(follower.client, "upsert", half)
    else:
        monkeypatch.setattr(follower.client, "query", settled)
    with pytest.raises(Crash):
        like_video(library.recommender, next(iter(library.items)), weights=Weights(1, 0))
    monkeypatch.undo()
    follower.close()
    for _ in range(3):  # The library changes meanwhile.
        change(library, rng)
    library.follower = MilvusIndex(library.db, uri, GENERATION, "mean")
    library.frames.close()
    library.frames = MilvusIndex(library.db, uri, GENERATION, "frame")
    library.recommender = Recommender(library.follower, lambda: library.frames, "mean")
    _agrees(library)
    assert library.follower.differences() == []


def test_a_first_filling_that_was_broken_off_is_begun_again_and_leaves_nothing(
    library: VectorLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    assert isinstance(library.follower, MilvusIndex)
    monkeypatch.setattr(library.follower.client, "query", crash)
    with pytest.raises(RuntimeError, match="killed"), library.follower.current():
        pass
    left = _collections(library)
    assert len(left) == 1
    monkeypatch.undo()
    _agrees(library)
    assert _collections(library) == {_name(library)}
    assert not _collections(library) & left


def test_a_collection_that_is_lost_is_made_anew(library: VectorLibrary) -> None:
    _agrees(library)
    lost = _name(library)
    assert isinstance(library.follower, MilvusIndex)
    library.follower.client.drop_collection(lost)
    with pytest.raises(Unavailable, match="cannot be reached"):
        _agrees(library)
    _agrees(library)
    assert _name(library) != lost
    assert library.follower.differences() == []


def test_what_differs_is_named_and_a_rebuild_mends_it(library: VectorLibrary) -> None:
    _agrees(library)
    keys = sorted(library.keys.values())
    assert isinstance(library.follower, MilvusIndex)
    client, name = library.follower.client, _name(library)
    stranger = {"id": 999_999, "video": 999_999, "category": "", "vector": [0.0] * library.follower.layout.width}
    client.upsert(name, [stranger, {**stranger, "id": keys[1], "video": keys[1]}])
    said = "\n".join(library.follower.differences())
    assert f"different vectors for video {keys[1]}" in said
    assert "contains video 999999, which is not ready" in said
    client.delete(name, ids=[keys[0]])
    said = "\n".join(library.follower.differences())
    assert f"different rows for video {keys[0]}" in said
    library.follower.rebuild()
    assert library.follower.differences() == []
    assert _collections(library) == {_name(library)}, "the old one is removed"
    _agrees(library)


def test_frames_come_and_go_with_their_videos(library: VectorLibrary) -> None:
    rng = np.random.default_rng(4)
    name = library.add(unit(rng), None, "a", np.stack([unit(rng) for _ in range(7)]))
    assert library.frames.differences() == []
    with library.db.write() as connection:  # sampled again, with fewer frames
        few = np.stack([unit(rng) for _ in range(3)])
        vector_rows.put_embeddings(connection, library.keys[name], GENERATION, aggregate(few, None))
        change_log.record_change(connection, library.keys[name])
    assert library.frames.differences() == []
    with library.frames.current() as (index, _):
        assert len(index) == 33
    library.delete(name)
    assert library.frames.differences() == []
    with library.frames.current() as (index, _):
        assert len(index) == 30


def test_a_library_that_outgrows_the_exact_index_gets_another_beside_it(library: VectorLibrary, uri: str) -> None:
    _agrees(library)
    assert isinstance(library.follower, MilvusIndex)
    library.follower.exact_up_to = 40
    first = _name(library)
    fill(library, np.random.default_rng(5), 20)
    _agrees(library)  # still exact; the other collection is being built
    until(lambda: _name(library) != first, 30, "the other collection serves")
    with library.follower.current() as (index, _):
        assert (index.kind, index.exact, len(index)) == ("milvus hnsw", False, 50)
    name = next(one for one, item in library.items.items() if item.t is not None)
    answer = like_video(library.recommender, name, weights=Weights(1, 0), k=50)
    assert len(answer.hits) == 49
    assert not answer.exact
    assert library.follower.differences() == []


def test_a_renewal_that_fails_is_begun_again_though_nothing_changes(
    library: VectorLibrary, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _agrees(library)
    assert isinstance(library.follower, MilvusIndex)
    first, client = _name(library), library.follower.client  # a file of Milvus Lite can have only one client
    timing = Timing(renewal_pause_seconds=0.3)
    follower = MilvusIndex(library.db, uri, GENERATION, "mean", exact_up_to=20, client=client, timing=timing)
    tries = []

    def failing(*_: Any, **__: Any) -> None:
        tries.append(time.monotonic())
        raise MilvusException(message="disk quota exhausted")

    create = client.create_collection
    monkeypatch.setattr(client, "create_collection", failing)

    def ask() -> str:
        with follower.current() as (index, _):
            return str(index.kind)

    until(lambda: ask() == "milvus flat" and len(tries) == 2, 10, "it is begun again")
    assert tries[1] - tries[0] >= 0.3
    monkeypatch.setattr(client, "create_collection", create)
    until(lambda: ask() == "milvus hnsw", 30, "the other collection serves")
    assert follower.collection != first
    assert follower.differences() == []


def test_processes_that_share_a_server_answer_alike(tmp_path: Path, milvus: services.Milvus) -> None:
    library = VectorLibrary(tmp_path, milvus=milvus.uri)
    rng = np.random.default_rng(6)
    fill(library, rng, 25)
    other = MilvusIndex(library.db, milvus.uri, GENERATION, "mean")
    elsewhere = Recommender(other, lambda: library.frames, "mean")
    for turn in range(6):
        _agrees(library, elsewhere if turn % 2 else library.recommender)
        change(library, rng)
    _agrees(library, elsewhere)
    _agrees(library)
    library.follower.rebuild()  # in this process; the other process follows
    _agrees(library, elsewhere)
    other.close()
    library.close()


def test_the_alias_follows_the_generation_that_answers(library: VectorLibrary, uri: str) -> None:
    _agrees(library)
    library.follower.save()
    assert isinstance(library.follower, MilvusIndex)
    client = library.follower.client
    with library.db.read() as connection:
        alias = TABLE + generation_rows.library_id(connection)
    assert client.describe_alias(alias)["collection_name"] == _name(library)
    another = Generation("g-other", "other", GENERATION.dimension, "float32")
    with library.db.write() as connection:
        generation_rows.add_generation(connection, another)
        for key in library.keys.values():
            vectors = vector_rows.vectors_by_kind(connection, key, GENERATION, "frame", "text")
            text = vectors["text"][0] if "text" in vectors else None
            vector_rows.put_embeddings(connection, key, another, aggregate(vectors["frame"], text))
    beside = MilvusIndex(library.db, uri, another, "mean", client=client)  # a file of Lite has one client
    beside.save()
    with beside.current() as (index, _):
        assert len(index) == 30
    beside.save()
    assert client.describe_alias(alias)["collection_name"] == _name(library), "it is not the active one yet"
    with library.db.write() as connection:
        generations.complete(connection, another)
        generations.switch(connection, another.id)
    beside.save()
    assert client.describe_alias(alias)["collection_name"] == beside.collection
    assert len(_collections(library)) == 2, "the way back is open"


def test_a_server_that_is_away_is_said_to_be_and_found_again(tmp_path: Path) -> None:
    server = services.Milvus()
    try:
        library = VectorLibrary(tmp_path, milvus=server.uri)
        fill(library, np.random.default_rng(7), 20)
        _agrees(library)
        library.follower.check()
        server.stop()
        with pytest.raises(Unavailable, match="the vector store cannot be reached"):
            library.follower.check()
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(Unavailable, match="the vector store cannot be reached"):
                _agrees(library)
            assert time.monotonic() - began < 15
        library.add(unit(np.random.default_rng(8)), None)
        settings = config.Settings(data_dir=tmp_path, vector_store=f"milvus+{server.uri}")
        said = [(one.state, one.message) for one in doctor.verify(settings) if one.check == "index"]
        assert [state for state, _ in said] == ["problem"]
        assert "the vector store cannot be reached" in said[0][1]
        server.start()
        for _ in range(120):
            try:
                _agrees(library)
            except Unavailable:
                time.sleep(1)
            else:
                break
        _agrees(library)
        assert library.follower.differences() == []
        library.close()
    finally:
        server.remove()


def test_doctor_and_index_commands_know_the_engine(tmp_path: Path, uri: str) -> None:
    library = VectorLibrary(tmp_path, milvus=uri)
    fill(library, np.random.default_rng(9), 12)
    library.follower.close()
    settings = config.Settings(
        data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/reelsrs.db", vector_store=f"milvus+{uri}"
    )
    found = [one for one in doctor.verify(settings) if one.check == "index"]
    assert [one.state for one in found] == ["ok"], found
    assert "12 rows, milvus flat" in found[0].message
    assert doctor.rebuild(settings) == 12
    library.db.close()


def test_settings_that_name_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("milvus", "milvus+", "milvus+host:19530", "redis", "milvus+ftp://x", "milvus+vectors"):
        with pytest.raises(ConfigurationError, match="REELSRS_VECTOR_STORE"):
            config.load(vector_store=wrong)
    for right in ("faiss", "milvus+http://h:19530", "milvus+https://u:p@h/d", "milvus+./vectors.db"):
        assert config.load(vector_store=right).vector_store == right
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    library = VectorLibrary(tmp_path)
    with pytest.raises(ConfigurationError, match=r"reelsrs\[milvus\]"):
        MilvusIndex(library.db, "http://h:19530", GENERATION, "mean")
    library.close()


def test_names_that_would_be_syntax_are_names(library: VectorLibrary) -> None:
    """Odd category names stay literals in Milvus's filter language."""
    rng = np.random.default_rng(10)
    odd = ['a" or id >= 0 or category == "', "it's", "кошка 猫 😀", "a in [1]", "%", "{x}", "x" * 200, "é" * 200]
    names = {category: library.add(unit(rng), unit(rng), category) for category in odd}
    name = next(one for one in library.items if one not in names.values() and library.items[one].t is not None)
    for category, only in names.items():
        answer = like_video(library.recommender, name, weights=Weights(1, 0), k=50, scope=Scope(category=(category,)))
        assert [hit.video.id for hit in answer.hits] == [only]
        rest = like_video(
            library.recommender, name, weights=Weights(1, 0), k=50, scope=Scope(exclude_category=(category,))
        )
        assert only not in {hit.video.id for hit in rest.hits}
        assert len(rest.hits) == len(library.items) - 2
