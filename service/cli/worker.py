"""Command `worker`, and the hidden commands that do its work in processes of their own."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from typing import Annotated

import typer

from service.cli.session import open_runtime
from service.errors import ConfigurationError


def worker(
    while_stdin_is_open: Annotated[bool, typer.Option("--while-stdin-is-open", hidden=True)] = False,
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve Prometheus metrics on this address, under /metrics.")
    ] = "",
) -> None:
    """Embed queued videos and fit requested maps, until interrupted.

    It also re-embeds the library if another model was requested. `serve` starts a worker of its own.
    """
    from service import config
    from service.worker.worker import Worker

    stop = _prepare_process(while_stdin_is_open=while_stdin_is_open)
    if metrics:
        _serve_metrics(metrics)
    with open_runtime(config.load()) as runtime:
        runtime.initialise(request_changes=False)
        # From here on a signal ends the work in order. While the model was loading, it ended the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        Worker(runtime).run(stop)


def fit_projection(key: int, owner: str) -> None:
    """Fit the map with this primary key, whose lease `owner` holds.

    The process ends when standard input closes.
    """
    from service import config
    from service.projections.steps import Cancelled

    _prepare_process()
    with open_runtime(config.load()) as runtime, suppress(Cancelled):
        runtime.projections.run_fit(key, owner)


def reembed(generation: str) -> None:
    """Re-embed the library with the model of a generation.

    The process ends when standard input closes. A failure is recorded in the generation.
    """
    from service import config
    from service.database import generation_rows
    from service.generations import generations
    from service.worker.processes import lower_priority

    stop = _prepare_process()
    lower_priority()  # a second time, because uploads have priority
    with open_runtime(config.load()) as runtime:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with runtime.db.read() as connection:
            other = generation_rows.generation(connection, generation)
        try:
            runtime.reembedding(other).run(stop)
        except Exception as error:
            with runtime.db.write() as connection:
                generations.record_error(connection, generation, str(error))
            raise


def _prepare_process(*, while_stdin_is_open: bool = True) -> threading.Event:
    """Prepare a process of the worker; return the event that is set when the process must stop."""
    from service import telemetry
    from service.worker.processes import lower_priority, stop_when_stdin_closes

    telemetry.configure_logging()
    stop = threading.Event()
    if while_stdin_is_open:
        stop_when_stdin_closes(stop)
    lower_priority()
    return stop


def _serve_metrics(address: str) -> None:
    """Serve the metrics on HOST:PORT. Raises BadParameter and ConfigurationError."""
    from service import telemetry

    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and int(port) < 65536):
        raise typer.BadParameter(f"must be HOST:PORT, not {address!r}", param_hint="--metrics")
    try:
        telemetry.serve_metrics(host.strip("[]"), int(port))
    except OSError as error:
        raise ConfigurationError(f"--metrics: cannot listen on {address}: {error.strerror}") from error
