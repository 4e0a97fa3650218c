"""Services for tests to send requests to: in this process by default, in a separate process if a test needs one."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
import uvicorn

from service import telemetry
from service.api.app import create_app, start_runtime
from service.api.protocol import Protocol
from service.api.timeouts import ClientTimeouts
from service.bootstrap import Runtime
from service.config import Settings
from service.embedding.encoder import Encoder
from service.media import Decoder
from service.timing import Timing
from service.worker.supervisor import StartWorker
from service.worker.worker import Worker
from tests.support import services
from tests.support.processes import CHILD_ENVIRONMENT, tied
from tests.support.wait import until


@dataclass(frozen=True)
class Service:
    """A running service: its address and its data folder."""

    url: str
    data_dir: Path

    @property
    def port(self) -> int:
        """Port that the service listens on."""
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **options: object) -> httpx.Client:
        """Return an HTTP client of the service with a timeout of 60 seconds."""
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Server(Service):
    """A service in a separate process."""

    process: subprocess.Popen[bytes]
    log: Path


# --- in this process


class WorkerThread:
    """Worker in a thread of this process, with its own runtime as a worker process has.

    The model and the decoder are shared, which saves the seconds that loading and starting them takes.
    """

    def __init__(self, settings: Settings, model: Encoder, decoder: Decoder, timing: Timing) -> None:
        self._stop = threading.Event()
        self._runtime = Runtime(settings, model=model, decoder=decoder, timing=timing)
        self._runtime.initialise(request_changes=False)
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker's thread is running."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop the worker after the jobs that it holds."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            Worker(self._runtime).run(self._stop)
        finally:
            self._runtime.close()


@contextmanager
def serving_here(
    settings: Settings,
    model: Encoder,
    decoder: Decoder,
    *,
    worker: bool = True,
    timeouts: ClientTimeouts | None = None,
    timing: Timing | None = None,
    before: Callable[[Runtime], None] = lambda _: None,
    port: int = 0,
) -> Iterator[Service]:
    """Serve on a socket in a thread of this process; the worker runs in another thread.

    Args:
        settings: Settings of the service.
        model: Model shared by service and worker.
        decoder: Decoder shared by service and worker.
        worker: Whether to start a worker.
        timeouts: Timeouts of client connections; the service's own if None.
        timing: Intervals of service and worker; the service's own if None.
        before: Called with the service's runtime before the first request.
        port: Port of an earlier service to take again; 0 for any free port.

    Raises:
        RuntimeError: If the service does not start.
    """

    def start_worker(settings: Settings, _: Runtime) -> WorkerThread:
        return WorkerThread(settings, model, decoder, timing or Timing())

    class Quick(Protocol):
        pass

    if timeouts is not None:
        Quick.timeouts = timeouts
    runtime = start_runtime(settings, model=model, decoder=decoder, timing=timing)
    before(runtime)
    beside: StartWorker | None = start_worker if worker else None
    app = create_app(settings, worker=beside, runtime=runtime, timeouts=timeouts)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Closed connections may still occupy the port.
        listening.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, http=Quick, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="service", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the service did not start")
                time.sleep(0.01)
            yield Service(f"http://127.0.0.1:{listening.getsockname()[1]}", settings.data_dir)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def logged(path: Path) -> Iterator[Path]:
    """Write the log to a file, in the format a service process writes to standard error, until the block ends."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with path.open("w", encoding="utf-8") as stream:
        with redirect_stderr(stream):
            telemetry.configure_logging()
        try:
            yield path
        finally:
            root.handlers, root.level = handlers, level
            structlog.reset_defaults()


# --- in a process of its own


@contextmanager
def launched(data_dir: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Run `reelsrs serve` over a data folder until the block ends. Call `answering` to wait until it is ready."""
    port = services.free_port()
    said = data_dir.with_suffix(".log")
    with said.open("ab") as output:
        process = subprocess.Popen(
            tied(sys.executable, "-m", "service", "serve", "--port", str(port), *arguments),
            env={
                **CHILD_ENVIRONMENT,
                "REELSRS_MODEL": "tiny",
                "REELSRS_DATA_DIR": str(data_dir),
                **services.environment(data_dir),
                **environment,
            },
            cwd=data_dir.parent,
            stdout=output,
            stderr=output,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", data_dir, process, said)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def answering(server: Server) -> Server:
    """Wait until the server is ready and return the server. Raises RuntimeError if its process ends."""

    def ready() -> bool:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}:\n{server.log.read_text()}")
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    with server.client() as client:
        until(ready, 120, server.log.read_text, every=0.1)
    return server


@contextmanager
def serving(data_dir: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Run `reelsrs serve` over a data folder until the block ends; wait until the service is ready."""
    with launched(data_dir, *arguments, **environment) as server:
        yield answering(server)
