"""The stored bytes in a bucket of an object store that speaks S3. Whose it is and where, the environment says in AWS's
own variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for another than Amazon's.

    ab/abcdef.../video             the bytes, under their SHA-256
    ab/abcdef.../1500000.jpg       the picture of the frame at 1.5 seconds
    ab/abcdef.../fingerprint
    unsettled/abcdef...            a mark: bytes are placed or removed, and their row is not committed yet

An upload is first written to this machine, where it is looked at, then sent in parts. An object is there whole or not
at all. Sending takes long, so it is not done under the database's lock: pictures are named by their time, and the
picture of a clip at a time is always the same, so whoever sends it again changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.errors import ConfigurationError, NotFound, Unavailable
from service.models import Blob
from service.storage.incoming import Incoming, room, sweep

_PART_BYTES = 8 << 20
_AT_ONCE = 8  # pictures on their way; 8 parts of an upload are 64 MB
_CONNECT_TIMEOUT = timedelta(seconds=5)
_TIMEOUT = timedelta(seconds=60)  # of one request
_RETRY_TIMEOUT = timedelta(seconds=10)


class BucketStore:
    """The store, below a prefix of a bucket."""

    def __init__(self, url: str, incoming: Path, link_seconds: int | None) -> None:
        """`incoming` is a folder of this machine for uploads on their way. Raises ConfigurationError, StorageFull."""
        parts = urlsplit(url)
        if not parts.netloc:
            raise ConfigurationError(f"REELSRS_STORAGE_URL: {url} names no bucket")
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = url
        self._incoming = incoming
        self._link_seconds = link_seconds
        # The library takes an empty variable at its word, and dies of an address that is none.
        for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
            del os.environ[name]
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "https://")
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigurationError(f"AWS_ENDPOINT_URL: must start with http:// or https:// (got {endpoint!r})")
        try:
            self._store = S3Store(
                parts.netloc,
                client_options={"connect_timeout": _CONNECT_TIMEOUT, "timeout": _TIMEOUT, "allow_http": True},
                retry_config={"max_retries": 3, "retry_timeout": _RETRY_TIMEOUT},
            )
        except BaseError as error:
            raise ConfigurationError(f"REELSRS_STORAGE_URL: {url} cannot be used: {_words(error)}") from error
        with room():
            incoming.mkdir(parents=True, exist_ok=True)

    def receive(self, limit_bytes: int) -> Incoming:
        """A place for the bytes of a new clip, on this machine; use it as a context manager."""
        with room():
            return Incoming(self._incoming, limit_bytes)

    def send(self, incoming: Incoming, media_type: str) -> None:
        """Bring finished bytes there, in parts."""
        with self._reached(), incoming.path.open("rb") as file:
            obstore.put(
                self._store,
                self._key(incoming.sha256),
                file,
                attributes={"Content-Type": media_type},
                chunk_size=_PART_BYTES,
                max_concurrency=_AT_ONCE,
            )

    def place(self, incoming: Incoming, media_type: str) -> None:
        """See that what was sent is still there: it may have been deleted since, by whoever deleted the same clip."""
        try:
            self.video(incoming.sha256)
        except NotFound:
            self.send(incoming, media_type)

    def video(self, sha256: str) -> Blob:
        """A clip's bytes. Raises NotFound."""
        return self._blob(self._key(sha256))

    def link(self, sha256: str) -> str | None:
        """An address that gives a clip's bytes to whoever has it, for a while."""
        if self._link_seconds is None:
            return None
        with self._reached():
            return obstore.sign(self._store, "GET", self._key(sha256), timedelta(seconds=self._link_seconds))

    def picture(self, sha256: str, _number: int, seconds: float) -> Blob:
        """A frame's JPEG, fetched whole: it is small, and to ask for its size would be a request more. Raises
        NotFound."""
        name = _picture(seconds)
        data = self._small(sha256, name)
        if data is None:
            raise NotFound(f"there is no stored object {sha256[:12]}/{name}")
        return Blob(len(data), lambda start, length: data[start : start + length])

    def send_pictures(self, sha256: str, times: Sequence[float], jpegs: Sequence[bytes]) -> None:
        """Bring the pictures of a clip's frames there."""

        def put(seconds: float, jpeg: bytes) -> None:
            obstore.put(self._store, self._key(sha256, _picture(seconds)), jpeg)

        with self._reached(), ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(put, times, jpegs))

    def put_pictures(self, _sha256: str, _jpegs: Sequence[bytes]) -> None:
        """Nothing: each has its name since it was sent."""

    def fingerprint(self, sha256: str) -> bytes | None:
        """A clip's fingerprint as it was put; None where there is none."""
        return self._small(sha256, "fingerprint")

    def put_fingerprint(self, sha256: str, data: bytes) -> None:
        """Replace a clip's fingerprint."""
        with self._reached():
            obstore.put(self._store, self._key(sha256, "fingerprint"), data)

    def delete(self, sha256: str) -> None:
        """Remove a clip and all that was made of it; nothing happens where there is none."""
        with self._reached():
            names = [item["path"] for page in obstore.list(self._store, self._key(sha256, "")) for item in page]
            if names:
                obstore.delete(self._store, names)

    def sweep(self) -> None:
        """Remove uploads whose process died on the way to this machine."""
        sweep(self._incoming)

    @contextmanager
    def unsettled(self, sha256: str) -> Iterator[None]:
        """While a clip's bytes may stand there without a row that refers to them."""
        with self._reached():
            obstore.put(self._store, self._mark(sha256), b"")
        yield
        self.settle(sha256)

    def doubtful(self) -> list[str]:
        """The SHA-256 of every clip whose bytes may have no row."""
        start = f"{self._prefix}unsettled/"
        with self._reached():
            return [item["path"].removeprefix(start) for page in obstore.list(self._store, start) for item in page]

    def settle(self, sha256: str) -> None:
        """It is known now whether they have one."""
        with self._reached():
            obstore.delete(self._store, self._mark(sha256))

    def check_writable(self) -> None:
        """Raises what storing a clip would raise; leaves nothing behind."""
        trial = f"{self._prefix}trial"
        with self._reached():
            obstore.put(self._store, trial, b"")
            obstore.delete(self._store, trial)

    def _key(self, sha256: str, name: str = "video") -> str:
        return f"{self._prefix}{sha256[:2]}/{sha256}/{name}"

    def _mark(self, sha256: str) -> str:
        return f"{self._prefix}unsettled/{sha256}"

    def _small(self, sha256: str, name: str) -> bytes | None:
        with self._reached():
            try:
                return bytes(obstore.get(self._store, self._key(sha256, name)).bytes())
            except FileNotFoundError:
                return None

    def _blob(self, key: str) -> Blob:
        with self._reached():
            try:
                size_bytes = obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                raise NotFound(f"there is no stored object {key.removeprefix(self._prefix)}") from None

        def read(start: int, length: int) -> bytes:
            length = min(length, size_bytes - start)
            if length <= 0:
                return b""
            with self._reached():
                try:
                    return bytes(obstore.get_range(self._store, key, start=start, length=length))
                except FileNotFoundError:
                    raise NotFound("the clip was deleted while it was read") from None

        return Blob(size_bytes, read)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise Unavailable(f"the store {self._url} cannot be used: {_words(error)}") from error


def _picture(seconds: float) -> str:
    return f"{round(seconds * 1e6)}.jpg"


def _words(error: BaseException) -> str:
    """What the server said, or the first line: what follows is for those who debug obstore."""
    said = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", str(error), re.DOTALL)
    return f"{said[1]}: {said[2]}" if said else str(error).strip().splitlines()[0][:300]
