"""Command `serve`: run the REST API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.config import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [REELSRS_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [REELSRS_PORT]")] = None,
    worker: Annotated[bool, typer.Option(help="Embed uploads, in a process of its own.")] = True,
    allow_anyone: Annotated[
        bool,
        typer.Option("--allow-anyone", help="Allow a non-local address without API keys."),
    ] = False,
) -> None:
    """Serve the REST API and the explorer page, and embed uploads.

    Uploads are embedded by a worker in a process of its own, unless --no-worker is given.
    """
    from service import config

    run_server(config.load(host=host, port=port, allow_anyone=allow_anyone or None), worker=worker)


def run_server(settings: Settings, *, worker: bool) -> None:
    """Start the application and serve it until interrupted.

    With `worker`, a separate process embeds uploads. Raises ReelsError if the application cannot start.
    """
    import gc

    import uvicorn

    from service import telemetry
    from service.api.app import create_app, start_runtime
    from service.api.protocol import Protocol, allow_many_connections
    from service.worker.supervisor import WorkerProcess

    telemetry.configure_logging()
    allow_many_connections()
    # Started before the server, so that a failure is reported in a sentence, not as a failed start-up event.
    application = create_app(settings, worker=WorkerProcess if worker else None, runtime=start_runtime(settings))
    # Exclude the present objects from garbage collection. Otherwise every response with many rows would make the
    # collector scan a million objects of the model's libraries.
    gc.freeze()
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,  # event streams do not end by themselves
    )
