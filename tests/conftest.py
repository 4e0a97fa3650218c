"""What the tests share: clips made with PyAV, the small model, a library, and a real server."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from service.config import Settings
from service.drawing import distinct_scenes, write_clip
from service.embedder import Embedder, load
from service.runtime import Runtime
from service.video import Decoder, Limits
from tests import backends

SHARED = Path(__file__).parent.parent.parent / "shared" / "clips"
CHILD_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("REELSRS_")}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long forms of tests/test_mutations.py and tests/test_kill.py, and where the tests' libraries are."""
    parser.addoption("--mutations", type=int, default=100, help="how many damaged clips are uploaded")
    parser.addoption("--kills", type=int, default=5, help="how often the service is killed at work")
    parser.addoption(
        "--distributed", action="store_true", help="libraries keep what they keep on servers, not in files"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """The servers are the same for all tests."""
    if session.config.getoption("--distributed"):
        backends.start()
        CHILD_ENVIRONMENT.update({name: value for name, value in os.environ.items() if name.startswith("AWS_")})


def pytest_sessionfinish() -> None:
    """Nothing is left running."""
    backends.stop()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("REELSRS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no .env of the checkout either, and nothing is written into it


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real clips."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared clips are not here: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny() -> Embedder:
    """The small model, loaded once."""
    return load("tiny", device="cpu")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[backends.PostgreSQL]:
    """A server that some tests start by themselves, whatever the others use."""
    started = backends.PostgreSQL()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def objects() -> Iterator[backends.ObjectStore]:
    """An object store that some tests start by themselves."""
    started = backends.ObjectStore()
    yield started
    started.remove()


@pytest.fixture(scope="session")
def milvus() -> Iterator[backends.Milvus]:
    """A Milvus that some tests start by themselves."""
    started = backends.Milvus()
    yield started
    started.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that has no schema yet, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new folder' / 'reelsrs.db'}"
    server: backends.PostgreSQL = request.getfixturevalue("postgresql")
    return server.url(secrets.token_hex(8))


ClipMaker = Callable[..., Path]


@pytest.fixture
def make_clip(tmp_path: Path) -> ClipMaker:
    """Encode frames: `make_clip("a.mp4", frames)`, RGB uint8 (H, W, 3) each."""

    def make(
        name: str,
        frames: list[np.ndarray],
        *,
        codec: str = "libx264",
        rate: int = 10,
        stamps: list[int] | None = None,
        pixel_format: str = "yuv420p",
        options: dict[str, str] | None = None,
        rotation: int | None = None,
        aspect: Fraction | None = None,
        metadata: dict[str, str] | None = None,
        transfer: int | None = None,
        container_format: str | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", format=container_format) as container:
            container.metadata.update(metadata or {})
            stream = container.add_stream(codec, rate=rate, options=options or {"qp": "0"})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = pixel_format
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if transfer is not None:
                stream.codec_context.color_trc = transfer
            if rotation is not None:
                stream.set_display_rotation(rotation)
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number if stamps is None else stamps[number]
                frame.time_base = Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


def numbered(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Grey frames, each of another brightness: frame i of n shows 20 + 200 i / (n - 1)."""
    return [
        np.full((height, width, 3), 20 + round(200 * number / max(1, count - 1)), np.uint8) for number in range(count)
    ]


def quarters(width: int = 64, height: int = 48) -> np.ndarray:
    """A picture whose quarters are red, green, blue and white: upper left, upper right, lower left, lower right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (220, 20, 20)
    picture[: height // 2, width // 2 :] = (20, 200, 20)
    picture[height // 2 :, : width // 2] = (20, 20, 220)
    picture[height // 2 :, width // 2 :] = (240, 240, 240)
    return picture


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `<category>/<clip>` of twelve drawn clips; every third has no caption."""
    folder = tmp_path_factory.mktemp("drawn")
    for number, scene in enumerate(distinct_scenes(12, seed=11)):
        clip = folder / scene.category / f"clip{number:02d}.mp4"
        clip.parent.mkdir(exist_ok=True)
        write_clip(scene, clip, seconds=1.0, fps=8, width=128, height=128)
        if number % 3:
            clip.with_suffix(".txt").write_text(scene.caption, encoding="utf-8")
    return folder


def settings_for(folder: Path, **changes: object) -> Settings:
    """Settings of a test library."""
    servers = {name.removeprefix("REELSRS_").lower(): value for name, value in backends.environment(folder).items()}
    return Settings(**{"data_dir": folder, "model": "tiny", "device": "cpu", **servers, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """Decoding processes, started once."""
    started = Decoder(Limits(3600, 40_000_000), processes=2)
    yield started
    started.close()


@pytest.fixture
def runtime(tmp_path: Path, tiny: Embedder, decoder: Decoder) -> Iterator[Runtime]:
    """An empty library. The model and the decoding processes are real, and started once for all tests."""
    built = Runtime(settings_for(tmp_path / "data"))
    built._model, built.__dict__["decoder"] = tiny, decoder
    built.adopt()
    yield built
    del built.__dict__["decoder"]  # others use it after this one
    built.close()


@dataclass(frozen=True)
class Server:
    """A service in a process of its own."""

    url: str
    data_dir: Path
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, **options: object) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]


@contextmanager
def serving(data_dir: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """`reelsrs serve` over a data folder, until the block ends."""
    port = backends.free_port()
    servers = backends.environment(data_dir)
    log = data_dir.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", str(port), *arguments],
            env={
                **CHILD_ENVIRONMENT,
                "REELSRS_MODEL": "tiny",
                "REELSRS_DATA_DIR": str(data_dir),
                **servers,
                **environment,
            },
            cwd=data_dir.parent,
            stdout=output,
            stderr=output,
        )
    server = Server(f"http://127.0.0.1:{port}", data_dir, process, log)
    try:
        with server.client() as client:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            else:
                raise RuntimeError(f"the server was not ready in time:\n{log.read_text()}")
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def family(pid: int) -> set[int]:
    """A process and all that descend from it, where there is /proc."""
    found = {pid}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Iterator[Server]:
    """A real server with the twelve drawn clips in it; tests leave those as they are."""
    with serving(tmp_path_factory.mktemp("server") / "data") as running, running.client() as client:
        for clip in sorted(drawn.rglob("*.mp4")):
            text = clip.with_suffix(".txt")
            form = {"category": clip.parent.name}
            if text.exists():
                form["caption"] = text.read_text(encoding="utf-8")
            with clip.open("rb") as file:
                answer = client.post("/v1/videos", params={"wait": 60}, files={"file": (clip.name, file)}, data=form)
            assert answer.status_code == 201, answer.text
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with server.client() as opened:
        yield opened
