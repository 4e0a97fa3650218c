"""Options and fixtures of all tiers: clips, the small model, decoders, libraries and services."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

# Before any import of tests.support: assertions there report what they compared, as assertions of tests do.
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

# Fixtures import what they need, so that tests without a model do not wait for torch.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --soak."""
    parser.addoption("--soak", action="store_true", help="run the long forms of the soak tests")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("REELSRS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # The checkout's .env is not read, and nothing is written into the checkout.


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """Return the folder of real clips; skip the test if it is missing."""
    from tests.support import services
    from tests.support.paths import SHARED_CLIPS

    if not SHARED_CLIPS.is_dir():
        services.missing(f"the shared clips are not here: {SHARED_CLIPS}")
    return SHARED_CLIPS


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether the long forms of the soak tests run."""
    return bool(pytestconfig.getoption("soak"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a temporary folder that all processes of this test run share, also under xdist."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


# --- clips, the model, decoders


@pytest.fixture(scope="session")
def tiny() -> Encoder:
    """Load the small model once."""
    from service.embedding.loading import load

    return load("tiny", device="cpu")


@pytest.fixture(scope="session")
def starter_cache(shared_folder: Path) -> Iterator[Path]:
    """Return the cache folder that holds the model `starter`, made once if the user's cache lacks it."""
    from tests.support.starter_model import cached

    with cached(shared_folder) as cache:
        yield cache


@pytest.fixture(scope="session")
def starter(starter_cache: Path) -> Encoder:
    """Load the model `starter` once."""
    from service.embedding.loading import load

    return load("starter", device="cpu")


@pytest.fixture
def make_clip(tmp_path: Path) -> ClipMaker:
    """Return a function `make_clip("a.mp4", frames)`; it encodes RGB uint8 frames (H, W, 3) into this test's folder."""
    from tests.support.clips import encode

    def make(name: str, frames: list[np.ndarray], **options: object) -> Path:
        return encode(tmp_path / name, frames, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder `<category>/<clip>` of twelve drawn clips; every third clip has no caption."""
    from tests.support.clips import draw_folder

    return draw_folder(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """Start two decoder processes once."""
    from service.media import Decoder, Limits

    started = Decoder(Limits(3600, 8192 * 4352), processes=2)
    yield started
    started.close()


# --- libraries and services


@pytest.fixture
def runtime(tmp_path: Path, tiny: Encoder, decoder: Decoder) -> Iterator[Runtime]:
    """Open an empty library. The model and the decoder processes are real, and started once for all tests."""
    from service.bootstrap import Runtime
    from tests.support.library import settings_for

    built = Runtime(settings_for(tmp_path / "data"), model=tiny, decoder=decoder)
    built.initialise()
    yield built
    built.close()


@pytest.fixture(scope="session")
def prepared(shared_folder: Path) -> PreparedLibrary:
    """Return the library of the drawn clips, embedded once."""
    from tests.support.library import PreparedLibrary

    folder = shared_folder / "prepared"
    folder.mkdir(exist_ok=True)
    return PreparedLibrary(folder)


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> Iterator[Service]:
    """Serve the twelve drawn clips in this process. Tests must not change these clips."""
    from tests.support.library import settings_for
    from tests.support.server import serving_here

    data = prepared.copied(tmp_path_factory.mktemp("service") / "data", drawn, tiny, decoder)
    with serving_here(settings_for(data), tiny, decoder) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """Return a client of the shared service."""
    with service.client() as opened:
        yield opened


# --- servers that single tests start, independent of the servers that other tests use


@pytest.fixture(scope="session")
def postgresql() -> Iterator[services.PostgreSQL]:
    """Start a PostgreSQL server."""
    from tests.support import services

    started = services.PostgreSQL()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def objects() -> Iterator[services.ObjectStore]:
    """Start an object store."""
    from tests.support import services

    started = services.ObjectStore()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def milvus() -> Iterator[services.Milvus]:
    """Start a Milvus server."""
    from tests.support import services

    started = services.Milvus()
    yield started
    started.remove()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the address of a SQLite database without a schema."""
    return f"sqlite:///{tmp_path / 'new folder' / 'reelsrs.db'}"
