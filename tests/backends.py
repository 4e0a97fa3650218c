"""Where the tests' libraries keep what they keep: in the data folder, or with `--distributed` on servers that are
started here, from the packages that the README names. A test asks for `environment(data_dir)` and knows no more."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def missing(what: str) -> None:
    """A part of the machine is not there: where the project is checked, it must be."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


class PostgreSQL:
    """A cluster of its own, on a port of the loopback, without a password, gone with `stop`."""

    def __init__(self, *, durable: bool = False) -> None:
        binaries = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin"), Path("/usr/bin")]
        found = [folder for folder in binaries if (folder / "initdb").exists()]
        if not found:
            missing("PostgreSQL is not installed (Debian: apt install postgresql)")
        self._binaries = found[0]
        self._folder = Path(tempfile.mkdtemp(prefix="reelsrs-postgresql-"))
        self.port = free_port()
        if os.getuid() == 0:  # it refuses to run as root; the package makes a user for it
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "-A", "trust", "-E", "UTF8", "--locale", "C", "-U", "reelsrs")
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c max_connections=500"
        self._options = options if durable else f"{options} -c fsync=off"
        self.start()

    def start(self) -> None:
        """Start it, again after a `stop`."""
        self._run("pg_ctl", "start", "-w", "-o", self._options, "-l", str(self._folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop it; its data stays. `mode` as pg_ctl has it."""
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def remove(self) -> None:
        """Stop it and remove its data."""
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def url(self, name: str) -> str:
        """The address of a database, which is made where it is not there."""
        admin = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with admin.connect() as connection:
            if not connection.execute(sa.text("SELECT 1 FROM pg_database WHERE datname = :n"), {"n": name}).first():
                connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://reelsrs@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._folder / "data"), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # Not to a pipe: the server inherits it, and whoever reads would wait for the server's end.
        with (self._folder / "out").open("ab") as output:
            done = subprocess.run(command, stdout=output, stderr=output, cwd="/", check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{(self._folder / 'out').read_text()}")


class Servers:
    """Everything that a distributed library needs."""

    def __init__(self) -> None:
        self.postgresql = PostgreSQL()

    def environment(self, data_dir: Path) -> dict[str, str]:
        """The settings of the library whose data folder this is."""
        name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:20]
        return {"REELSRS_DATABASE_URL": self.postgresql.url(name)}

    def remove(self) -> None:
        """Stop them."""
        self.postgresql.remove()


_started: list[Servers] = []


def start() -> None:
    """From now on libraries are distributed."""
    _started.append(Servers())


def stop() -> None:
    """End the servers, if there are any."""
    while _started:
        _started.pop().remove()


def environment(data_dir: Path) -> dict[str, str]:
    """What a library needs beside its data folder; nothing where that holds everything."""
    return _started[0].environment(data_dir) if _started else {}


def database_url(data_dir: Path) -> str:
    """Where its rows are."""
    return environment(data_dir).get("REELSRS_DATABASE_URL", f"sqlite:///{data_dir}/reelsrs.db")
