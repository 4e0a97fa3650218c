"""`serve`, which answers, and `worker`, which embeds."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.session import open_runtime

if TYPE_CHECKING:
    from service.config import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [REELSRS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [REELSRS_PORT]")] = None,
    worker: Annotated[bool, typer.Option(help="Embed uploads too, in a process beside.")] = True,
    allow_anyone: Annotated[
        bool,
        typer.Option("--allow-anyone", help="Need no key on an address that others can reach, where there is none."),
    ] = False,
) -> None:
    """Serve the REST API, the explorer page and the embedding worker."""
    from service import config

    run_server(config.load(host=host, port=port, allow_anyone=allow_anyone or None), worker=worker)


def worker(
    while_stdin_is_open: Annotated[bool, typer.Option("--while-stdin-is-open", hidden=True)] = False,
    lay_out: Annotated[int | None, typer.Option("--lay-out", hidden=True)] = None,
    owner: Annotated[str, typer.Option("--owner", hidden=True)] = "",
    generation: Annotated[str, typer.Option("--generation", hidden=True)] = "",
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="answer Prometheus there, under /metrics")] = "",
) -> None:
    """Embed what is queued, and lay out the maps that were asked for, until interrupted. `serve` starts one of its
    own."""
    import signal
    import threading

    from service import config, figures, log
    from service.database import generation_rows
    from service.errors import ConfigurationError
    from service.generations import generations
    from service.projections.steps import Cancelled
    from service.worker.worker import Worker, lower_priority, stop_with_stdin

    log.configure()
    stop = threading.Event()
    if while_stdin_is_open or lay_out is not None or generation:
        stop_with_stdin(stop)
    lower_priority()
    if lay_out is not None:
        with open_runtime(config.load()) as runtime, suppress(Cancelled):
            runtime.atlas.lay_out(lay_out, owner)
        return
    if generation:
        lower_priority()  # once more: uploads go first
        with open_runtime(config.load()) as runtime:
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            with runtime.db.read() as connection:
                other = generation_rows.generation(connection, generation)
            try:
                runtime.reembedding(other).run(stop)
            except Exception as error:
                with runtime.db.write() as connection:
                    generations.report(connection, generation, str(error))
                raise
        return
    if metrics:
        host, _, port = metrics.rpartition(":")
        if not (host and port.isdigit() and int(port) < 65536):
            raise typer.BadParameter("must be HOST:PORT", param_hint="--metrics")
        try:
            figures.show(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigurationError(f"--metrics: {metrics} cannot be listened on: {error.strerror}") from error
    with open_runtime(config.load()) as runtime:
        runtime.adopt(wishes=False)
        # From here on a signal ends the work in order; while the model was loading it simply ended the process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        Worker(runtime).run(stop)


def run_server(settings: Settings, *, worker: bool) -> None:
    import gc

    import uvicorn

    from service import log
    from service.api.app import create_app, start
    from service.api.guard import Protocol, allow_many_connections
    from service.worker.worker import WorkerProcess

    log.configure()
    allow_many_connections()
    # Built before the server, so that what cannot be had is a sentence and not a failed start-up event.
    application = create_app(settings, worker=WorkerProcess if worker else None, started=start(settings))
    # What is there now stays: the collector would look through a million objects of the model's libraries each time
    # that an answer of many rows is put together.
    gc.freeze()
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,  # streams of events never end by themselves
    )
