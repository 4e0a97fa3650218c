"""Several services and workers that share the same servers, and a TCP relay that can be interrupted."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import httpx
import sqlalchemy as sa

from service.database import db
from service.database.db import Database
from service.worker.processes import owner_of
from tests.support import services
from tests.support.processes import CHILD_ENVIRONMENT, tied
from tests.support.rows import owners
from tests.support.server import answering, launched
from tests.support.wait import until


class Cable:
    """TCP relay to a local port that a test can interrupt.

    While interrupted, existing connections are broken and new connections are closed at once.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._whole = True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections and close new connections at once until `mend` is called."""
        self._whole = False
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # The relaying thread closes the socket.

    def mend(self) -> None:
        """Accept and relay new connections again."""
        self._whole = True

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._connect, args=(near, far), daemon=True).start()

    def _connect(self, near: socket.socket, far: socket.socket) -> None:
        self._ends |= {near, far}
        with near, far:
            back = threading.Thread(target=self._hand_on, args=(far, near), daemon=True)
            back.start()
            self._hand_on(near, far)
            back.join()
            self._ends -= {near, far}

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Cluster:
    """Three services and any number of workers over one PostgreSQL database and one object store.

    Services "one" and "two" keep their vectors in the same Milvus server; service "alone" uses FAISS. Object store and
    Milvus are reached through relays that a test can interrupt.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.postgresql = services.PostgreSQL()
        stack.callback(self.postgresql.remove)
        objects = services.ObjectStore()
        stack.callback(objects.remove)
        milvus = services.Milvus()
        stack.callback(milvus.remove)
        self.cable, self.vectors = Cable(objects.port), Cable(milvus.port)
        self.url = self.postgresql.url("library")
        self._folder = folder
        self._stack = stack
        self._environment = {
            **objects.environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.cable.port}",
            "REELSRS_MODEL": "tiny",
            "REELSRS_DATABASE_URL": self.url,
            "REELSRS_STORAGE_URL": objects.url("library"),
        }
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self._numbers = count()
        stack.callback(self.kill_all)
        shared = f"milvus+http://127.0.0.1:{self.vectors.port}"
        engines = {"one": shared, "two": shared, "alone": "faiss"}
        self.services = [
            stack.enter_context(
                launched(folder / name, "--no-worker", REELSRS_VECTOR_STORE=engine, **self._environment)
            )
            for name, engine in engines.items()
        ]
        for service in self.services:
            answering(service)

    def work(self) -> None:
        """Start a worker process with a data folder of its own, as if it ran on another machine."""
        number = next(self._numbers)
        with self._log(number).open("ab") as output:
            self.workers[number] = subprocess.Popen(
                tied(sys.executable, "-m", "service", "worker"),
                env={
                    **CHILD_ENVIRONMENT,
                    **self._environment,
                    "REELSRS_DATA_DIR": str(self._folder / f"worker-{number}"),
                    "OMP_NUM_THREADS": "1",
                },
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )

    def started(self) -> None:
        """Wait until every worker has imported its modules.

        That takes minutes beside other load, because workers run at low priority.
        """
        for number in self.workers:
            log = self._log(number)
            until(lambda log=log: "loading the model" in log.read_text(), 300, log)

    def kill(self, number: int) -> None:
        """Kill the worker with this number and wait until its process has ended."""
        process = self.workers.pop(number)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        """Kill every worker."""
        for number in list(self.workers):
            self.kill(number)

    def busy(self) -> list[int]:
        """Return the numbers of the workers that hold jobs."""
        held = {owner.rpartition(":")[0] for owner in owners(self.url)}
        return [number for number, process in self.workers.items() if owner_of(process.pid) in held]

    def _log(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"

    def ids(self) -> set[str]:
        """Return the ids of all videos in the database."""
        database = Database(self.url)
        with database.read() as connection:
            found = set(connection.execute(sa.select(db.videos.c.id)).scalars())
        database.close()
        return found

    def clients(self) -> list[httpx.Client]:
        """Return one HTTP client per service, with a timeout of 120 seconds."""
        clients = [self._stack.enter_context(service.client()) for service in self.services]
        for client in clients:
            client.timeout = httpx.Timeout(120)
        return clients
