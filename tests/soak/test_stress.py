"""Search for a minute from threads and processes, during uploads, edits, deletions and rebuilds of the index.

Eight videos are changed together in one transaction, repeatedly; each one's state determines that of the others. This
reveals results that mix two states, or that are older than the last commit before the search.
"""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from service.database import change_log, vector_rows, video_rows
from service.database.db import Database
from service.index.sync import SyncedIndex
from service.models import Weights
from service.search.query import QueryVector
from service.search.recommender import Recommender
from service.vectors import aggregate, normalise
from tests.support.queries import like
from tests.support.vector_library import GENERATION, D, VectorLibrary
from tests.support.wait import going_on

SECONDS = 60
SHORT_SECONDS = 6  # long enough for the index to become compressed, and exact again
BORDER = 150
SHORT_BORDER = 116  # reached soon
MARKED = 8
AXES = np.eye(D, dtype=np.float32)


def _turn(database: Database, keys: list[int], number: int) -> None:
    """Write state `number`: the vectors of video i equal axis i + number; its title and category name the state."""
    with database.write() as connection:
        for place, key in enumerate(keys):
            axis = AXES[(place + number) % MARKED]
            vector_rows.put_embeddings(connection, key, GENERATION, aggregate(axis[None], axis))
            video_rows.update_video(connection, key, title=str(number), category=f"marked {number % 2}")
            change_log.record_change(connection, key)


def _ask(recommender: Recommender, keys: list[int], least: int) -> int:
    """Run one search and check it; return the number of the state found, which must be at least `least`."""
    answer = like(
        recommender, QueryVector(AXES[0], AXES[0]), weights=Weights(0.5, 0.5), fusion="cosine", k=40, min_score=-1.0
    )
    marked = {keys.index(hit.video.pk): hit for hit in answer.hits if hit.video.pk in keys}
    states = {int(hit.video.title) for hit in marked.values()}
    assert len(states) == 1, f"two states in one answer: {states}"
    state = states.pop()
    assert state >= least, f"an answer of state {state} after {least} was committed"
    for place, hit in marked.items():
        assert hit.video.category == f"marked {state % 2}"
        expected = float((place + state) % MARKED == 0)
        assert abs(hit.score - expected) < 1e-5, (place, state, hit.score)
    assert (answer.hits[0].video.pk, round(answer.hits[0].score, 5)) == (keys[-state % MARKED], 1.0)
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True)
    return state


def _reader(folder: str, border: int, keys: list[int], stop: Event, failures: multiprocessing.Queue[str]) -> None:
    """Search in a separate process, with its own index over the same database."""
    path = Path(folder)
    database = Database(f"sqlite:///{path}/reelsrs.db")
    follower = SyncedIndex(database, path / "index", GENERATION, "mean", exact_up_to=border)
    recommender, state = Recommender(follower, lambda: follower, "mean"), 0
    try:
        while not stop.is_set():
            state = _ask(recommender, keys, state)
    except BaseException as error:
        failures.put(f"{type(error).__name__}: {error}")
    follower.close()
    database.close()


def test_no_error_no_wrong_answer_no_mixed_answer(tmp_path: Path, soak: bool) -> None:
    border = BORDER if soak else SHORT_BORDER
    library = VectorLibrary(tmp_path, exact_up_to=border)
    rng = np.random.default_rng(8)

    def filler() -> np.ndarray:
        vector = rng.standard_normal(D)
        vector[:MARKED] = 0  # orthogonal to all axes
        return normalise(vector)

    names = [library.add(filler(), filler()) for _ in range(100)]
    keys = [library.keys[library.add(AXES[place], AXES[place])] for place in range(MARKED)]
    _turn(library.db, keys, 0)
    committed = [0]
    answers = [0]
    kinds: set[str] = set()
    failures: list[str] = []
    done = threading.Event()
    spawn = multiprocessing.get_context("spawn")
    stop, theirs = spawn.Event(), spawn.Queue()
    readers = [
        spawn.Process(target=_reader, args=(str(tmp_path), border, keys, stop, theirs)) for _ in range(2 if soak else 1)
    ]

    def ask() -> None:
        try:
            while not done.is_set():
                _ask(library.recommender, keys, committed[0])
                answers[0] += 1
                with library.follower.current() as (index, _):
                    kinds.add(index.kind)
        except BaseException as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for one in (*threads, *readers):
        one.start()

    def enough() -> bool:
        return kinds == {"flat", "compressed"} and answers[0] > 100

    growing = True
    for number in going_on(SECONDS if soak else SHORT_SECONDS, enough):
        if failures:
            break
        _turn(library.db, keys, number + 1)
        committed[0] = number + 1
        # Cross the border in both directions, so that the index is rebuilt as compressed and as exact repeatedly.
        growing = len(names) < 60 or (growing and len(names) < border + 60)
        if growing:
            names.append(library.add(filler(), filler()))
        else:
            library.delete(names.pop(0))
    done.set()
    stop.set()
    for one in (*threads, *readers):
        one.join(60)
    while not theirs.empty():
        failures.append(theirs.get())
    assert failures == []
    assert [reader.exitcode for reader in readers] == [0] * len(readers)
    assert enough(), f"the index was never renewed, or hardly asked: {kinds}, {answers[0]} answers"
    library.close()
