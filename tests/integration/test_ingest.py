"""Tests of the upload pipeline with the real decoder and the real model."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from service.bootstrap import Runtime
from service.database import db, jobs, vector_rows, video_rows
from service.embedding.encoder import Encoder
from service.errors import InvalidInput, NotFound, StorageFull, Unavailable, Undecodable
from service.models import MAX_CAPTION_CHARACTERS, Sampling, Video, Weights
from service.vectors import aggregate
from service.worker.worker import Worker
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.queries import like_video
from tests.support.uploads import accept, offer, status_of

SAMPLING = Sampling(4)


def _vectors(runtime: Runtime, video: Video, kind: str) -> np.ndarray | None:
    with runtime.db.read() as connection:
        return vector_rows.vectors(connection, video.pk, runtime.serving.encoder().generation, kind)  # type: ignore[arg-type]


def test_a_clip_becomes_vectors_pictures_and_a_hit(runtime: Runtime, drawn: Path, tiny: Encoder) -> None:
    clips = sorted(drawn.rglob("*.mp4"))[:3]
    videos = [accept(runtime, clip, caption=f"clip {n}") for n, clip in enumerate(clips)]
    assert [video.status for video in videos] == ["queued"] * 3
    Worker(runtime).run_until_idle()
    first = status_of(runtime, videos[0])
    assert (first.status, first.progress, first.error) == ("ready", 1.0, None)
    assert len(first.frame_times) == 4
    frames = _vectors(runtime, first, "frame")
    assert frames is not None
    made = aggregate(frames, None)
    np.testing.assert_allclose(_vectors(runtime, first, "mean"), made.mean[None], atol=1e-6)
    np.testing.assert_allclose(_vectors(runtime, first, "max"), made.max[None], atol=1e-6)
    np.testing.assert_allclose(_vectors(runtime, first, "text"), tiny.embed_texts(["clip 0"]), atol=1e-5)
    assert runtime.files.thumbnail(first.sha256, 3, first.frame_times[3]).read(0, 2) == b"\xff\xd8"
    answer = like_video(runtime.serving.recommender, first.id, weights=Weights(1, 1))
    assert {hit.video.id for hit in answer.hits} == {videos[1].id, videos[2].id}


def test_the_same_bytes_are_one_video_even_at_the_same_time(runtime: Runtime, make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(10))
    runtime.ingest  # noqa: B018 - built before the threads ask for it
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: offer(runtime, clip, caption="x"), range(8)))
    assert len({video.id for video, _ in answers}) == 1
    assert sorted(outcome for _, outcome in answers) == ["created"] + ["existing"] * 7


def test_batches_over_several_videos_keep_them_apart(runtime: Runtime, drawn: Path, tiny: Encoder) -> None:
    """The vectors of each video equal those of the video embedded alone."""
    clips = sorted(drawn.rglob("*.mp4"))[:5]
    videos = [accept(runtime, clip) for clip in clips]
    Worker(runtime).run_until_idle()
    for video, clip in zip(videos, clips, strict=True):
        alone = tiny.embed_images(runtime.decoder.sample(clip, SAMPLING, tiny.image_spec).pixels)
        together = _vectors(runtime, video, "frame")
        assert together is not None
        np.testing.assert_allclose((together * alone).sum(axis=1), 1, atol=1e-4)


def test_a_clip_that_takes_long_does_not_hold_up_those_that_come_after_it(
    runtime: Runtime, make_clip: ClipMaker
) -> None:
    slow = accept(runtime, make_clip("slow.mp4", numbered(10)))
    with ThreadPoolExecutor(2) as pool:  # start both child processes
        list(pool.map(runtime.decoder.probe, [runtime.files.video(slow.sha256)] * 2))
    pid = runtime.decoder.child_pids[0]  # the process that gets the next request
    os.kill(pid, signal.SIGSTOP)
    stop = threading.Event()
    worker = threading.Thread(target=Worker(runtime).run, args=(stop,))
    worker.start()
    try:
        _until(lambda: status_of(runtime, slow).status == "processing")
        later = accept(runtime, make_clip("later.mp4", numbered(12)))
        _until(lambda: status_of(runtime, later).status == "ready")
        assert status_of(runtime, slow).status == "processing"
    finally:
        os.kill(pid, signal.SIGCONT)
        stop.set()
        worker.join()
    assert status_of(runtime, slow).status == "ready"  # a claimed video is finished after `stop` is set


def test_no_more_is_claimed_than_keeps_the_model_busy(
    runtime: Runtime, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.ingestion.pipeline.AHEAD_FRAMES", 1)
    monkeypatch.setattr(runtime.serving.encoder(), "batch", 1)
    clips = sorted(drawn.rglob("*.mp4"))
    videos = [accept(runtime, clip) for clip in clips]
    most = 0

    def claim() -> list[int]:
        nonlocal most
        with runtime.db.write() as connection:
            claimed = jobs.claim(connection, "me", 1)
            most = max(most, video_rows.status_counts(connection).get("processing", 0))
        return claimed

    runtime.pipeline.run(claim, runtime.uploads("me"))
    assert {status_of(runtime, video).status for video in videos} == {"ready"}
    # Each stage (decoding, model, storing) holds at most one video more than there are decoder processes.
    assert len(videos) > most
    assert most <= 3 * (runtime.decoder.processes + 1)


def test_jobs_of_a_dead_worker_of_the_same_name_are_claimed_again(runtime: Runtime, make_clip: ClipMaker) -> None:
    """A container that is started again has the host name and often the process number of the one before."""
    video = accept(runtime, make_clip("a.mp4", numbered(10)))
    runtime.timing = replace(runtime.timing, lease_seconds=1.5)
    assert Worker(runtime).claim() == [video.pk]  # dies with its job, in a process of the same number
    stop = threading.Event()
    worker = threading.Thread(target=Worker(runtime).run, args=(stop,))
    worker.start()
    try:
        _until(lambda: status_of(runtime, video).status == "ready", 20)
    finally:
        stop.set()
        worker.join()


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_no_video_is_refused_before_anything_is_kept(runtime: Runtime, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    for content in (b"", b"words"):
        bad.write_bytes(content)
        with pytest.raises(Undecodable):
            offer(runtime, bad)
    with runtime.db.read() as connection:
        assert video_rows.status_counts(connection) == {}
    assert [path.name for path in Path(runtime.settings.storage).rglob("*")] == ["incoming"]


def test_a_clip_that_breaks_later_fails_alone_and_can_be_sent_again(runtime: Runtime, make_clip: ClipMaker) -> None:
    good, bad = (
        accept(runtime, make_clip("a.mp4", numbered(10))),
        accept(runtime, make_clip("b.mp4", numbered(12))),
    )
    stored = runtime.files.video(bad.sha256).path
    assert stored is not None
    whole = stored.read_bytes()
    stored.write_bytes(b"the disk forgot")
    Worker(runtime).run_until_idle()
    assert status_of(runtime, good).status == "ready"
    failed = status_of(runtime, bad)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "not a video" in failed.error
    stored.write_bytes(whole)
    again, outcome = offer(runtime, make_clip("c.mp4", numbered(12)))
    assert (again.id, outcome, again.status) == (bad.id, "requeued", "queued")
    stored.write_bytes(b"the disk forgot again")
    Worker(runtime).run_until_idle()
    assert status_of(runtime, bad).status == "failed"
    stored.write_bytes(whole)
    assert runtime.ingest.retry(bad.id).status == "queued"  # a retry needs no new upload
    Worker(runtime).run_until_idle()
    assert status_of(runtime, bad).status == "ready"
    assert runtime.ingest.retry(bad.id).status == "ready"


def test_a_fault_that_is_not_the_clips_is_tried_again_however_often(
    runtime: Runtime, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = accept(runtime, make_clip("a.mp4", numbered(10)))
    now = [time.time()]
    monkeypatch.setattr(db, "now", lambda _: now[0])

    def full(*_: object) -> None:
        raise StorageFull("no room left")

    worker = Worker(runtime)
    with monkeypatch.context() as broken:
        broken.setattr(runtime.files, "commit_thumbnails", full)
        for pause in (2, 4, 8, 16, 30, 30):
            worker.run_until_idle()
            waiting = status_of(runtime, video)
            assert (waiting.status, waiting.error) == ("queued", "no room left")
            now[0] += pause - 0.1
            with runtime.db.read() as connection:
                assert not jobs.waiting(connection)
            now[0] += 0.2
    worker.run_until_idle()
    assert status_of(runtime, video).status == "ready"


def test_what_an_error_leaves_undone_is_given_back(runtime: Runtime, make_clip: ClipMaker) -> None:
    """The database is locked when the result, and then the failure, is to be written."""
    video = accept(runtime, make_clip("a.mp4", numbered(10)))
    other = sqlite3.connect(runtime.settings.data_dir / "reelsrs.db", isolation_level=None)

    class Locked(Worker):
        """A worker that locks the database after its first claim."""

        def claim(self, stop: threading.Event | None = None) -> list[int]:
            if claimed := super().claim(stop):
                other.execute("BEGIN IMMEDIATE")
            return claimed

    worker = Locked(runtime)
    runtime.db.lock_seconds = 0.1
    with pytest.raises(Unavailable, match="busy"):
        worker.run_until_idle()
    other.execute("ROLLBACK")
    assert status_of(runtime, video).status == "processing"
    Worker(runtime).run_until_idle()
    assert status_of(runtime, video).status == "processing", "it is another's while its lease lasts"
    with pytest.raises(Unavailable, match="busy"):
        worker.run_until_idle()  # the worker first returns the job, then claims it again
    other.execute("ROLLBACK")
    other.close()
    with runtime.db.read() as connection:
        assert connection.execute(sa.select(db.jobs.c.attempts)).scalar() == 1, "it was not the video's fault"


def test_a_new_caption_embeds_text_only(runtime: Runtime, make_clip: ClipMaker, tiny: Encoder) -> None:
    video = accept(runtime, make_clip("a.mp4", numbered(10)), caption="old words")
    Worker(runtime).run_until_idle()
    before = _vectors(runtime, video, "frame")
    edited = runtime.ingest.edit(video.id, {"caption": "new words", "category": "films"})
    assert (edited.caption, edited.category, edited.status) == ("new words", "films", "ready")
    np.testing.assert_allclose(_vectors(runtime, video, "text"), tiny.embed_texts(["new words"]), atol=1e-5)
    assert np.array_equal(_vectors(runtime, video, "frame"), before)  # type: ignore[arg-type]
    runtime.ingest.edit(video.id, {"caption": None})
    assert _vectors(runtime, video, "text") is None
    assert status_of(runtime, video).category == "films"
    with pytest.raises(InvalidInput, match="title"):
        runtime.ingest.edit(video.id, {"title": " "})
    with pytest.raises(InvalidInput, match="caption"):
        runtime.ingest.edit(video.id, {"caption": "x" * (MAX_CAPTION_CHARACTERS + 1)})
    with pytest.raises(NotFound):
        runtime.ingest.edit("nobody", {"title": "x"})


def test_a_caption_edited_while_its_video_is_embedded_is_the_one_that_counts(
    runtime: Runtime, make_clip: ClipMaker, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = accept(runtime, make_clip("a.mp4", numbered(10)), caption="first")
    real = tiny.embed_images

    def meanwhile(pixels: np.ndarray) -> np.ndarray:
        runtime.ingest.edit(video.id, {"caption": "second"})
        return real(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "embed_images", meanwhile)
        Worker(runtime).run_until_idle()
    np.testing.assert_allclose(_vectors(runtime, video, "text"), tiny.embed_texts(["second"]), atol=1e-5)


def test_a_video_deleted_while_it_is_embedded_stays_gone(
    runtime: Runtime, make_clip: ClipMaker, tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = accept(runtime, make_clip("a.mp4", numbered(10)))
    real = tiny.embed_images

    def meanwhile(pixels: np.ndarray) -> np.ndarray:
        runtime.ingest.delete(video.id)
        return real(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "embed_images", meanwhile)
        Worker(runtime).run_until_idle()
    with pytest.raises(NotFound):
        status_of(runtime, video)
    assert [path.name for path in Path(runtime.settings.storage).rglob("*")] == ["incoming"]


def test_uploads_and_deletions_of_the_same_bytes_never_lose_a_clip(runtime: Runtime, make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(5))
    runtime.ingest  # noqa: B018 - built before the threads ask for it
    stop = threading.Event()

    def delete() -> None:
        while not stop.is_set():
            with runtime.db.read() as connection:
                found = video_rows.list_videos(connection, limit=1)
            for video in found:
                try:
                    runtime.ingest.delete(video.id)
                except NotFound:
                    continue

    threads = [threading.Thread(target=delete) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        try:
            offer(runtime, clip)
        except Undecodable as error:
            assert "upload them again" in str(error)
    stop.set()
    for thread in threads:
        thread.join()
    video = accept(runtime, clip)
    assert runtime.files.video(video.sha256).read(0, 1 << 30) == clip.read_bytes()


def test_another_aggregation_needs_no_decoding(runtime: Runtime, drawn: Path, tiny: Encoder) -> None:
    videos = [accept(runtime, clip) for clip in sorted(drawn.rglob("*.mp4"))[:4]]
    Worker(runtime).run_until_idle()
    by_max = Runtime(settings_for(runtime.settings.data_dir, aggregation="max"), model=tiny)
    for folder in Path(runtime.settings.storage).glob("??"):  # the clips are not read again
        folder.rename(folder.with_name("gone" + folder.name))
    query = _vectors(runtime, videos[0], "max")
    answer = like_video(by_max.serving.recommender, videos[0].id, weights=Weights(1, 0))
    assert query is not None
    assert len(answer.hits) == 3
    for hit in answer.hits:
        other = _vectors(runtime, hit.video, "max")
        assert other is not None
        assert hit.score == pytest.approx(float(query[0] @ other[0]), abs=1e-5)
    by_max.close()


def test_a_start_removes_what_a_crash_left_and_nothing_else(
    runtime: Runtime, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = accept(runtime, make_clip("kept.mp4", numbered(5)))
    gone = accept(runtime, make_clip("gone.mp4", numbered(6)))
    foreign = Path(runtime.settings.storage) / "ab" / ("ab" * 32) / "video"  # belongs to a library in another database
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"not ours")

    def die(*_: object, **__: object) -> None:
        raise RuntimeError("the plug is pulled")

    with monkeypatch.context() as broken:
        broken.setattr(video_rows, "add_video", die)
        with pytest.raises(RuntimeError):
            offer(runtime, make_clip("never.mp4", numbered(7)))
    with monkeypatch.context() as broken:
        broken.setattr(runtime.files, "delete", die)
        with pytest.raises(RuntimeError):
            runtime.ingest.delete(gone.id)
    stored = [path for path in Path(runtime.settings.storage).glob("??/*/video") if path != foreign]
    assert len(stored) == 3
    assert runtime.ingest.repair() == 2
    assert runtime.files.video(kept.sha256).size_bytes
    assert foreign.exists()
    assert len(list(Path(runtime.settings.storage).glob("??/*/video"))) == 2
    assert list((Path(runtime.settings.storage) / "incoming").iterdir()) == []
    assert runtime.ingest.repair() == 0
