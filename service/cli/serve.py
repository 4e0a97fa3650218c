"""`serve`, which answers, and `worker`, which embeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

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


def run_server(settings: Settings, *, worker: bool) -> None:
    import gc

    import uvicorn

    from service import telemetry
    from service.api.app import create_app, start
    from service.api.guard import Protocol, allow_many_connections
    from service.worker.supervisor import WorkerProcess

    telemetry.configure_logging()
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
