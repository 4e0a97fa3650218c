"""Options, and what every tier may ask for: clips, the small model, decoders, libraries and services."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

# Before anything of it is imported: its assertions say what they compared, as those of tests do.
pytest.register_assert_rewrite("tests.support")
pytest_plugins = ["tests.support.pytest_hooks"]

if TYPE_CHECKING:
    from service.bootstrap import Runtime
    from service.embedding.encoder import Encoder
    from service.media import Decoder
    from tests.support import services
    from tests.support.clips import ClipMaker
    from tests.support.library import PreparedLibrary
    from tests.support.server import Service

# What a fixture needs is imported by it: tests that need no model are not to wait for torch.


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long forms of the soak tests."""
    parser.addoption("--soak", action="store_true", help="run the long forms of the soak tests")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("REELSRS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no .env of the checkout either, and nothing is written into it


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real clips."""
    from tests.support import services
    from tests.support.paths import SHARED_CLIPS

    if not SHARED_CLIPS.is_dir():
        services.missing(f"the shared clips are not here: {SHARED_CLIPS}")
    return SHARED_CLIPS


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether the long forms are run."""
    return bool(pytestconfig.getoption("soak"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all processes of this run share, under xdist too."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


# --- clips, the model, decoders


@pytest.fixture(scope="session")
def tiny() -> Encoder:
    """The small model, loaded once."""
    from service.embedding.loading import load

    return load("tiny", device="cpu")


@pytest.fixture
def make_clip(tmp_path: Path) -> ClipMaker:
    """`make_clip("a.mp4", frames)` encodes frames, RGB uint8 (H, W, 3) each, into this test's folder."""
    from tests.support.clips import encode

    def make(name: str, frames: list[np.ndarray], **options: object) -> Path:
        return encode(tmp_path / name, frames, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `<category>/<clip>` of twelve drawn clips; every third has no caption."""
    from tests.support.clips import draw_folder

    return draw_folder(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """Decoding processes, started once."""
    from service.media import Decoder, Limits

    started = Decoder(Limits(3600, 8192 * 4352), processes=2)
    yield started
    started.close()


# --- libraries and services


@pytest.fixture
def runtime(tmp_path: Path, tiny: Encoder, decoder: Decoder) -> Iterator[Runtime]:
    """An empty library. The model and the decoding processes are real, and started once for all tests."""
    from service.bootstrap import Runtime
    from tests.support.library import settings_for

    built = Runtime(settings_for(tmp_path / "data"), model=tiny, decoder=decoder)
    built.initialise()
    yield built
    built.close()


@pytest.fixture(scope="session")
def prepared(shared_folder: Path) -> PreparedLibrary:
    """The library of the drawn clips, embedded once."""
    from tests.support.library import PreparedLibrary

    folder = shared_folder / "prepared"
    folder.mkdir(exist_ok=True)
    return PreparedLibrary(folder)


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> Iterator[Service]:
    """A service in this process with the twelve drawn clips in it; tests leave those as they are."""
    from tests.support.library import settings_for
    from tests.support.server import serving_here

    data = prepared.copied(tmp_path_factory.mktemp("service") / "data", drawn, tiny, decoder)
    with serving_here(settings_for(data), tiny, decoder) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of the shared service."""
    with service.client() as opened:
        yield opened


# --- servers that some tests start by themselves, whatever the others use


@pytest.fixture(scope="session")
def postgresql() -> Iterator[services.PostgreSQL]:
    """A database server."""
    from tests.support import services

    started = services.PostgreSQL()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def objects() -> Iterator[services.ObjectStore]:
    """An object store."""
    from tests.support import services

    started = services.ObjectStore()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def milvus() -> Iterator[services.Milvus]:
    """A vector database."""
    from tests.support import services

    started = services.Milvus()
    yield started
    started.remove()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of a database that has no schema yet."""
    return f"sqlite:///{tmp_path / 'new folder' / 'reelsrs.db'}"
