"""Tests of the errors of failing decoder processes: the message states the true cause."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.bootstrap import Runtime
from service.errors import InternalError, Unavailable, Undecodable
from service.media import Decoder, Limits
from service.models import Blob, ImageSpec, Sampling
from service.worker.worker import Worker
from tests.support.clips import ClipMaker, numbered
from tests.support.processes import ended
from tests.support.uploads import accept, status_of
from tests.support.wait import until

SMALL = ImageSpec(32, 32)


@dataclass(frozen=True, slots=True)
class ImageSpecOfANewerVersion(ImageSpec):
    """A specification with a field that the decoder's process cannot load, like a bug in the service's code."""

    colours: int = 3


@pytest.fixture
def single() -> Iterator[Decoder]:
    """Yield a decoder with one process."""
    started = Decoder(Limits(600, 2_000_000), processes=1)
    yield started
    started.close()


def test_a_mistake_in_the_code_is_named_and_is_not_the_clips(single: Decoder, make_clip: ClipMaker) -> None:
    clip = make_clip("a.mp4", numbered(3))
    single.probe(clip)
    (pid,) = single.child_pids
    with capture_logs() as logs, pytest.raises(InternalError, match=r"TypeError: .*colours"):
        single.sample(clip, Sampling(1), ImageSpecOfANewerVersion(32, 32))
    (entry,) = logs
    assert "in _answer" in entry["traceback"]
    assert single.sample(clip, Sampling(1), SMALL).pixels.shape == (1, 32, 32, 3)
    assert single.child_pids == (pid,), "the process goes on"


def test_a_mistake_costs_a_job_its_attempts_and_says_why(
    runtime: Runtime, make_clip: ClipMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = accept(runtime, make_clip("a.mp4", numbered(3)))
    with monkeypatch.context() as patch:
        patch.setattr(runtime.serving.encoder(), "image_spec", ImageSpecOfANewerVersion(64, 64))
        Worker(runtime).run_until_idle()
    now = status_of(runtime, video)
    assert (now.status, "TypeError" in (now.error or "")) == ("queued", True), now.error
    assert "attempt 1 failed: the decoder failed" in (now.error or "")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, r"the decoder crashed \(SIGSEGV\) on this file"),
        (signal.SIGKILL, r"the decoder was killed \(SIGKILL, probably because memory ran out\) on this file"),
        (signal.SIGTERM, r"the decoder was terminated \(SIGTERM\) on this file"),
    ],
)
def test_a_process_that_ends_in_the_middle_says_by_what(
    single: Decoder, make_clip: ClipMaker, number: signal.Signals, words: str
) -> None:
    clip = make_clip("a.mp4", numbered(3))
    data = clip.read_bytes()
    single.probe(clip)
    (pid,) = single.child_pids

    def read(start: int, length: int) -> bytes:
        os.kill(pid, number)  # the process has requested bytes of the clip and waits for them
        until(lambda: ended(pid))
        return data[start : start + length]

    with pytest.raises(Undecodable, match=words):
        single.probe(Blob(len(data), read))
    assert single.probe(clip).width == 64


def test_a_process_that_cannot_start_is_not_the_clips_fault(
    make_clip: ClipMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip("a.mp4", numbered(3))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "av.py").write_text("raise ImportError('libavcodec is of another version')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    decoder = Decoder(Limits(600, 2_000_000), processes=1)
    with capture_logs() as logs, pytest.raises(Unavailable, match=r"cannot be started: ImportError: libavcodec is of"):
        decoder.probe(clip)
    assert "_load_all" in logs[0]["traceback"]
    monkeypatch.undo()
    assert decoder.probe(clip).width == 64
    decoder.close()


def test_odd_errors_of_libraries_are_the_files(single: Decoder, tmp_path: Path) -> None:
    """A GIF of size 0 and a PNG with a wrong chunk length cause neither a crash nor an internal error."""
    for name, data in {
        "a.gif": b"GIF89a\x00\x00\x00\x00\x80\x00\x00" + b"\0" * 20,
        "b.png": b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR" + b"\0" * 40,
        "c.mp4": b"\0\0\0\x18ftypisom\0\0\0\0isommp42\xff\xff\xff\xffmoov" + b"\xff" * 64,
    }.items():
        (tmp_path / name).write_bytes(data)
        for ask in (single.probe, lambda path: single.image(path, SMALL)):
            with pytest.raises(Undecodable):
                ask(tmp_path / name)
    assert len(single.child_pids) == 1
