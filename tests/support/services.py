"""Start servers for tests (PostgreSQL, S3, Milvus), and locate the data of a library.

The data is in the library's data folder or, inside a `used` block, on the servers. Servers come from the packages that
the README names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import httpx
import pytest
import sqlalchemy as sa
from obstore.store import S3Store

from tests.support.processes import tied
from tests.support.wait import until


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def missing(what: str) -> NoReturn:
    """Skip the test because the machine lacks something it needs; fail instead if CI is "true"."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


class PostgreSQL:
    """A PostgreSQL server without password on a loopback port, removed by `remove`.

    The server is a child process that ends with the test process. All its files are in one temporary folder.
    """

    def __init__(self, *, durable: bool = False) -> None:
        binaries = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin"), Path("/usr/bin")]
        found = [folder for folder in binaries if (folder / "initdb").exists()]
        if not found:
            missing("PostgreSQL is not installed (Debian: apt install postgresql)")
        self._binaries = found[0]
        self._folder = Path(tempfile.mkdtemp(prefix="reelsrs-postgresql-"))
        self.port = free_port()
        if os.getuid() == 0:  # PostgreSQL refuses to run as root; its package creates the user postgres.
            shutil.chown(self._folder, "postgres")
        with (self._folder / "out").open("ab") as output:
            made = self._command("initdb", "-A", "trust", "-E", "UTF8", "--locale", "C", "-U", "reelsrs")
            subprocess.run(made, stdout=output, stderr=output, cwd="/", check=True)
        options = {
            "listen_addresses": "127.0.0.1",
            "max_connections": "500",
            "unix_socket_directories": str(self._folder),
            "dynamic_shared_memory_type": "mmap",
            "fsync": "on" if durable else "off",
        }
        self._options = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.start()

    def start(self) -> None:
        """Start the server, or start it again after `stop`; wait until it accepts connections."""
        with (self._folder / "log").open("ab") as output:
            command = self._command("postgres", "-p", str(self.port), *self._options)
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd="/")
        until(self._answers, 60, lambda: (self._folder / "log").read_text()[-2000:], every=0.05)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and keep its data. "immediate" acts as a power failure does."""
        self._process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        self._process.wait(60)

    def remove(self) -> None:
        """Stop the server and remove its data."""
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended:\n{(self._folder / 'log').read_text()[-2000:]}")
        engine = sa.create_engine(self._url("postgres"), poolclass=sa.NullPool)
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            return False
        return True

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._binaries / program), "-D", str(self._folder / "data"), *arguments]
        if os.getuid() == 0:
            as_its_user = ("--reuid=postgres", "--regid=postgres", "--init-groups")
            return ["setpriv", *as_its_user, "--pdeathsig", "KILL", "--", *command]
        return tied(*command)

    def url(self, name: str) -> str:
        """Return the address of a database; create the database if it does not exist."""
        admin = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with admin.connect() as connection:
            if not connection.execute(sa.text("SELECT 1 FROM pg_database WHERE datname = :n"), {"n": name}).first():
                connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://reelsrs@127.0.0.1:{self.port}/{name}"


class ObjectStore:
    """An S3 server (moto) on a loopback port with objects in memory only."""

    def __init__(self) -> None:
        if importlib.util.find_spec("moto") is None:
            missing("moto is not installed")
        self.port = free_port()
        self.process = subprocess.Popen(
            tied(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # moto accepts any credentials, but a request must have some.
        told = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, Signature=0"}
        for _ in range(300):
            try:
                httpx.put(f"http://127.0.0.1:{self.port}/reelsrs", headers=told, trust_env=False).raise_for_status()
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError("the object store did not start")

    @property
    def environment(self) -> dict[str, str]:
        """AWS environment variables that point to the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }

    def url(self, name: str) -> str:
        """Return the address of a store; a name not used before gives an empty store."""
        return f"s3://reelsrs/{name}"

    def names(self, name: str) -> set[str]:
        """Return the object keys of the store `name`, relative to its prefix."""
        bucket = S3Store("reelsrs", prefix=name, client_options={"allow_http": True})
        return {item["path"] for page in bucket.list() for item in page}

    def remove(self) -> None:
        """Kill the server. Its objects are lost."""
        self.process.kill()
        self.process.wait()


class Milvus:
    """A Milvus server from the wheel `milvus`.

    Milvus opens its ports on every address. The server therefore runs in its own network namespace, with a relay to a
    loopback port outside.
    """

    def __init__(self) -> None:
        command = shutil.which("milvus-server")
        if command is None:
            missing("milvus-server is not on the PATH (pip install milvus==2.3.5 'setuptools<80', apart from ReelsRS)")
        self._command = command
        self._folder = Path(tempfile.mkdtemp(prefix="reelsrs-milvus-"))
        self.port = free_port()
        self.start()

    @property
    def uri(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, or start it again after `stop` with the same data; wait until it is ready."""
        with socket.socket() as listener, (self._folder / "log").open("ab") as log:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(128)
            apart = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--net", "--map-root-user"]
            relay = [sys.executable, str(Path(__file__).parent / "network_relay.py"), str(listener.fileno()), "19530"]
            server = [self._command, "--data", str(self._folder / "data")]
            self.process = subprocess.Popen(
                [*apart, *relay, *server],  # The relay ends when its input closes, and kills the server.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        from pymilvus import MilvusClient, MilvusException

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                client = MilvusClient(self.uri, timeout=3)
                client.list_collections(timeout=3)
                client.close()
            except MilvusException:
                time.sleep(0.5)
            else:
                return
        raise RuntimeError(f"Milvus did not start:\n{(self._folder / 'log').read_text()[-5000:]}")

    def stop(self) -> None:
        """Kill the server; its data stays."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def remove(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self._folder)


@dataclass(frozen=True)
class Servers:
    """All servers that a distributed library needs."""

    postgresql: PostgreSQL
    objects: ObjectStore
    milvus: Milvus

    def environment(self, data_dir: Path) -> dict[str, str]:
        """Return the environment variables of the library with this data folder."""
        name = _name(data_dir)
        return {
            "REELSRS_DATABASE_URL": self.postgresql.url(name),
            "REELSRS_STORAGE_URL": self.objects.url(name),
            "REELSRS_VECTOR_STORE": f"milvus+{self.milvus.uri}",
        }


def _name(data_dir: Path) -> str:
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:20]


_started: list[Servers] = []


@contextmanager
def used(servers: Servers) -> Iterator[None]:
    """Keep the data of all libraries on these servers until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.objects.environment.items():
            patch.setenv(name, value)
        _started.append(servers)
        try:
            yield
        finally:
            _started.remove(servers)


def environment(data_dir: Path) -> dict[str, str]:
    """Return a library's environment variables besides its data folder; none if the folder holds everything."""
    return _started[0].environment(data_dir) if _started else {}


def stored(data_dir: Path) -> set[str]:
    """Return the names of all stored objects, such as `ab/abcdef.../video`, including unfinished uploads."""
    if _started:
        on_their_way = incoming(data_dir).iterdir() if incoming(data_dir).exists() else ()
        return _started[0].objects.names(_name(data_dir)) | {f"incoming/{path.name}" for path in on_their_way}
    media = data_dir / "media"
    return {str(path.relative_to(media)) for path in media.rglob("*") if path.is_file()}


def overwrite(data_dir: Path, sha256: str, data: bytes) -> None:
    """Replace the bytes of a stored clip."""
    name = f"{sha256[:2]}/{sha256}/video"
    if _started:
        S3Store("reelsrs", prefix=_name(data_dir), client_options={"allow_http": True}).put(name, data)
    else:
        (data_dir / "media" / name).write_bytes(data)


def incoming(data_dir: Path) -> Path:
    """Return the folder of unfinished uploads."""
    return data_dir / "incoming" if _started else data_dir / "media" / "incoming"


def clips(data_dir: Path) -> set[str]:
    """Return the SHA-256 of every clip that has any object in the store."""
    return {path.split("/")[1] for path in stored(data_dir) if path[2] == "/"}


def database_url(data_dir: Path) -> str:
    """Return the address of the library's database."""
    return environment(data_dir).get("REELSRS_DATABASE_URL", f"sqlite:///{data_dir}/reelsrs.db")
