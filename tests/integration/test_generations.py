"""Tests of re-embedding: a target generation is built beside the active one, activated, and reverted."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bootstrap import Runtime
from service.database import vector_rows, video_rows
from service.embedding.encoder import Encoder
from service.embedding.loading import TINY
from service.errors import NotReady, Unavailable, Undecodable
from service.generations import generations
from service.models import ImageSpec, Sampling, Video, Weights
from service.worker.worker import Worker
from tests.support import services
from tests.support.clips import ClipMaker, numbered
from tests.support.library import settings_for
from tests.support.queries import like_video
from tests.support.uploads import accept

SAMPLING = Sampling(4)


@pytest.fixture
def filled(runtime: Runtime, make_clip: ClipMaker) -> tuple[Runtime, list[Video]]:
    """Return a library of six ready videos, five of them with captions."""
    videos = [accept(runtime, make_clip(f"{n}.mp4", numbered(n)), caption=f"clip {n}") for n in range(8, 13)]
    videos.append(accept(runtime, make_clip("13.mp4", numbered(13))))
    Worker(runtime).run_until_idle()
    return runtime, videos


@pytest.fixture
def other(filled: tuple[Runtime, list[Video]]) -> Any:
    """Yield a function that starts a process with another precision, so with another target generation."""
    opened = []

    def start(**settings: object) -> Runtime:
        opened.append(Runtime(settings_for(filled[0].settings.data_dir, **{"precision": "bfloat16", **settings})))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def _status(runtime: Runtime, video: Video) -> str:
    with runtime.db.read() as connection:
        return video_rows.video(connection, video.id).status


def _states(runtime: Runtime) -> dict[str, generations.State]:
    with runtime.db.read() as connection:
        return {one.generation.precision: one for one in generations.states(connection)}


def _kinds(runtime: Runtime, video: Video, precision: str) -> set[str]:
    with runtime.db.read() as connection:
        generation = _states(runtime)[precision].generation
        return set(vector_rows.vectors_by_kind(connection, video.pk, generation, "frame", "mean", "max", "text"))


def _like(runtime: Runtime, video: Video) -> list[tuple[str, float]]:
    answer = like_video(runtime.serving.recommender, video.id, weights=Weights(0.7, 0.3))
    return [(hit.video.id, hit.score) for hit in answer.hits]


def test_what_was_there_answers_until_everything_is_embedded_and_going_back_is_free(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime], tiny: Encoder
) -> None:
    runtime, videos = filled
    before = _like(runtime, videos[0])
    moved = other()
    assert moved.initialise() == tiny.generation, "the old one answers on"
    assert _states(moved)["bfloat16"].status == "embedding"
    assert [_status(moved, video) for video in videos] == ["ready"] * 6
    assert _like(moved, videos[0]) == before
    heard: list[float] = []
    moved.reembed(heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    states = _states(moved)
    assert (states["bfloat16"].status, states["float32"].status) == ("active", "ready")
    assert [_status(moved, video) for video in videos] == ["ready"] * 6
    assert moved.serving.generation.precision == "bfloat16"
    after = _like(moved, videos[0])
    assert {name for name, _ in after} == {name for name, _ in before}
    assert after != before
    runtime.follow()  # `runtime` is another process
    assert _like(runtime, videos[0]) == after
    back = other(precision="float32")
    assert back.initialise() == tiny.generation
    assert _like(back, videos[0]) == before


def test_only_a_change_of_the_settings_is_a_wish(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime]
) -> None:
    runtime, _ = filled
    moved = other()
    moved.initialise()
    moved.reembed(lambda _: None)
    first = _states(moved)["float32"].generation.id
    moved.switch(first)
    again = other()
    assert again.initialise().id == first, "the settings are as they were heard; the switch came later"
    assert _states(again)["bfloat16"].status == "ready"
    unset = Runtime(settings_for(runtime.settings.data_dir).model_copy())
    assert unset.settings.requested_model == ("tiny", None)
    unset.close()


def test_a_worker_has_no_wishes(filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime]) -> None:
    assert other().initialise(request_changes=False).precision == "float32"
    assert set(_states(filled[0])) == {"float32"}


def test_what_changes_meanwhile_is_as_it_is_now(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime], make_clip: ClipMaker
) -> None:
    runtime, videos = filled
    moved = other()
    moved.initialise()
    generation = _states(moved)["bfloat16"].generation
    moved.request_model("tiny", "bfloat16", activate=False)  # without automatic activation
    stop = threading.Event()
    moved.reembedding(generation).run(stop, keep_up=False)
    assert _states(moved)["bfloat16"].status == "ready"
    runtime.ingest.edit(videos[0].id, {"caption": "other words"})
    runtime.ingest.edit(videos[1].id, {"caption": None})
    runtime.ingest.edit(videos[5].id, {"caption": "words at last"})
    assert _kinds(runtime, videos[0], "bfloat16") == {"frame", "mean", "max"}, "the old caption's vector stayed"
    assert _kinds(runtime, videos[0], "float32") == {"frame", "mean", "max", "text"}
    runtime.ingest.resample(videos[2].id, Sampling(2))
    runtime.ingest.delete(videos[3].id)
    late = accept(runtime, make_clip("late.mp4", numbered(20)), caption="late")
    Worker(runtime).run_until_idle()
    assert _kinds(runtime, videos[2], "bfloat16") == set(), "the old frames' vectors stayed"
    moved.reembedding(generation).run(stop, keep_up=False)
    everything = {"frame", "mean", "max", "text"}
    assert [_kinds(runtime, video, "bfloat16") for video in (videos[0], videos[2], videos[5], late)] == [everything] * 4
    assert _kinds(runtime, videos[1], "bfloat16") == everything - {"text"}
    for precision in ("bfloat16", "float32"):
        with runtime.db.read() as connection:
            frames = vector_rows.vectors(connection, videos[2].pk, _states(runtime)[precision].generation, "frame")
        assert frames is not None
        assert len(frames) == 2
    moved.switch(generation.id)
    texts = moved.serving.encoder().embed_texts(["other words", "late"])
    with moved.db.read() as connection:
        kept = [vector_rows.vectors(connection, video.pk, generation, "text") for video in (videos[0], late)]
    np.testing.assert_allclose(np.concatenate([one for one in kept if one is not None]), texts, atol=1e-2)
    assert {name for name, _ in _like(moved, videos[0])} == {videos[n].id for n in (1, 2, 4, 5)} | {late.id}


def test_a_caption_that_the_model_refuses_fails_its_own_video_only(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, videos = filled
    moved = other()
    moved.initialise()
    generation = _states(moved)["bfloat16"].generation
    moved.request_model("tiny", "bfloat16", activate=False)
    moved.reembedding(generation).run(threading.Event(), keep_up=False)
    for number in range(3):
        runtime.ingest.edit(videos[number].id, {"caption": f"edited {number}"})
    real = Encoder.embed_texts

    def fussy(encoder: Encoder, texts: list[str]) -> Any:
        if "edited 1" in texts:
            raise RuntimeError("this text cannot be embedded")
        return real(encoder, texts)

    monkeypatch.setattr(Encoder, "embed_texts", fussy)
    moved.reembedding(generation).run(threading.Event(), keep_up=False)
    has_text = ["text" in _kinds(runtime, video, "bfloat16") for video in videos[:3]]
    assert has_text == [True, False, True]


def test_what_comes_after_it_was_complete_is_queued_when_it_is_switched_to(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime], make_clip: ClipMaker
) -> None:
    runtime, videos = filled
    moved = other()
    moved.initialise()
    generation = _states(moved)["bfloat16"].generation
    with pytest.raises(NotReady, match="embedding"):
        moved.switch(generation.id)
    moved.reembed(lambda _: None)
    runtime.follow()
    late = accept(moved, make_clip("late.mp4", numbered(20)))
    Worker(moved).run_until_idle()
    first = _states(moved)["float32"].generation.id
    moved.switch(first)
    assert _status(moved, late) == "queued"
    assert [_status(moved, video) for video in videos] == ["ready"] * 6
    runtime.follow()
    Worker(runtime).run_until_idle()
    assert _status(runtime, late) == "ready"
    assert late.id in {name for name, _ in _like(runtime, videos[0])}


def test_a_switch_in_the_middle_of_the_work_mixes_nothing(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime], make_clip: ClipMaker
) -> None:
    runtime, videos = filled
    moved = other()
    moved.initialise()
    moved.reembed(lambda _: None)
    # `runtime` is a process that has not noticed the switch yet.
    late = accept(runtime, make_clip("late.mp4", numbered(20)), caption="late")
    with pytest.raises(Unavailable, match="became active"):
        runtime.ingest.edit(videos[0].id, {"caption": "never"})
    worker = Worker(runtime)
    assert worker.claim() == [], "claimed for a model that does not answer any more"
    with runtime.db.write() as connection:
        claimed = generations.jobs.claim(connection, worker.owner, 4)
    given = iter([claimed])
    runtime.pipeline.run(lambda: next(given, []), runtime.uploads(worker.owner))
    assert _kinds(runtime, late, "float32") == set()
    with runtime.db.read() as connection:
        assert video_rows.video(connection, videos[0].id).caption == "clip 8"


def test_a_clip_that_cannot_be_embedded_beside_is_named_and_the_rest_goes_on(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime]
) -> None:
    runtime, videos = filled
    services.overwrite(runtime.settings.data_dir, videos[2].sha256, b"the disk has a bad block")
    with pytest.raises(Undecodable):
        runtime.decoder.sample(runtime.files.video(videos[2].sha256), Sampling(1), ImageSpec(32, 32))
    moved = other()
    moved.initialise()
    moved.reembed(lambda _: None)
    state = _states(moved)["bfloat16"]
    assert (state.status, state.embedded, state.total) == ("active", 5, 5)
    assert _status(moved, videos[2]) == "queued", "it is tried as an upload is, and its failure seen"
    Worker(moved).run_until_idle()
    assert _status(moved, videos[2]) == "failed"
    assert len(_like(moved, videos[0])) == 4


def test_a_clip_that_the_other_model_fails_at_is_given_up_and_a_model_that_fails_is_not(
    filled: tuple[Runtime, list[Video]], other: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, videos = filled
    moved = other()
    moved.initialise()
    generation = _states(moved)["bfloat16"].generation
    model = moved.load(generation, image_tower=True)
    poison = moved.decoder.sample(runtime.files.video(videos[2].sha256), SAMPLING, model.image_spec).pixels
    real = model.embed_images

    def never(_: np.ndarray) -> np.ndarray:
        raise Unavailable("the model failed: no memory")

    def picky(pixels: np.ndarray) -> np.ndarray:
        inside = any(np.array_equal(pixels[start : start + len(poison)], poison) for start in range(len(pixels)))
        return never(pixels) if inside else real(pixels)

    with monkeypatch.context() as broken:
        broken.setattr(model, "embed_images", never)
        with pytest.raises(Unavailable, match="no memory"):
            moved.reembedding(generation).run(threading.Event(), keep_up=False)
    assert _states(moved)["bfloat16"].embedded == 0
    monkeypatch.setattr(model, "embed_images", picky)
    moved.reembedding(generation).run(threading.Event(), keep_up=False)
    states = _states(moved)
    assert (states["bfloat16"].embedded, states["float32"].status) == (5, "ready")
    assert _status(moved, videos[2]) == "queued"
    assert [_status(moved, video) for video in videos if video is not videos[2]] == ["ready"] * 5


def test_other_weights_under_the_same_name_are_another_generation(
    tmp_path: Path, make_clip: ClipMaker, tiny: Encoder
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    settings = settings_for(tmp_path / "data").model_copy(update={"model": f"local-dir:{folder}"})
    first = Runtime(settings)
    assert first.initialise().id == tiny.generation.id
    videos = [accept(first, make_clip(f"{n}.mp4", numbered(n)), caption="words") for n in (8, 9)]
    Worker(first).run_until_idle()
    first.close()
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.4, 0.4]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    second = Runtime(settings)
    assert second.initialise().id == tiny.generation.id
    assert len(_like(second, videos[0])) == 1, "videos are compared by what is stored"
    with pytest.raises(Unavailable, match="not those that the library was embedded with"):
        second.serving.query_encoder.text("words")
    second.reembed(lambda _: None)
    assert second.serving.generation.id != tiny.generation.id
    assert second.serving.query_encoder.text("words").text is not None
    assert len(_like(second, videos[0])) == 1
    second.close()
