"""Store clips and everything derived from them in a bucket of an S3-compatible object store.

AWS's own environment variables name the account and the endpoint: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
and AWS_ENDPOINT_URL for another endpoint than Amazon's.

    ab/abcdef.../video             the bytes, under their SHA-256
    ab/abcdef.../1500000.jpg       the thumbnail of the frame at 1.5 seconds
    ab/abcdef.../fingerprint       the clip's fingerprint
    unsettled/abcdef...            a mark: bytes are placed or removed, and their row is not committed yet

An upload is first written to this machine and probed, then sent in parts. An object is either complete or absent.
Sending is slow, so it does not happen inside a write transaction. Thumbnails are named by their time. The thumbnail of
a clip at a given time is always the same, so sending it again changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from service.errors import ConfigurationError, NotFound, Unavailable
from service.models import Blob
from service.storage.incoming import IncomingUpload, remove_stray_uploads, storage_errors

_PART_BYTES = 8 << 20
_CONCURRENT_REQUESTS = 8  # thumbnails or parts sent at a time; 8 parts of an upload are 64 MiB
_CONNECT_TIMEOUT = timedelta(seconds=5)
_TIMEOUT = timedelta(seconds=60)  # of one request
_RETRY_TIMEOUT = timedelta(seconds=10)


class BucketStore:
    """Store below a prefix of a bucket."""

    def __init__(self, url: str, incoming: Path, link_seconds: int | None) -> None:
        """Prepare a client for the bucket at `url`. Raises ConfigurationError, StorageFull.

        `incoming` is a folder on this machine for uploads in progress. Links are valid for `link_seconds`; None means
        no links.
        """
        # Not parsed as a URL, which would end the prefix at a question mark or a number sign: an object may have both.
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigurationError(f"REELSRS_STORAGE_URL: {url} has no bucket name; write s3://BUCKET/PREFIX")
        folders = [part for part in prefix.split("/") if part]
        if {".", ".."} & set(folders):
            raise ConfigurationError(f"REELSRS_STORAGE_URL: {url} must not have . or .. in its prefix")
        self._prefix = "".join(f"{part}/" for part in folders)
        self._url = url
        self._incoming = incoming
        self._link_seconds = link_seconds
        # obstore uses an empty variable as it is, and crashes if the endpoint is not a URL.
        for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
            del os.environ[name]
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "https://")
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigurationError(f"AWS_ENDPOINT_URL: must start with http:// or https://, not {endpoint!r}")
        try:
            self._store = S3Store(
                bucket,
                client_options={"connect_timeout": _CONNECT_TIMEOUT, "timeout": _TIMEOUT, "allow_http": True},
                retry_config={"max_retries": 3, "retry_timeout": _RETRY_TIMEOUT},
            )
        except BaseError as error:
            raise ConfigurationError(f"REELSRS_STORAGE_URL: {url} cannot be used: {_error_text(error)}") from error
        with storage_errors():
            incoming.mkdir(parents=True, exist_ok=True)

    def receive(self, limit_bytes: int) -> IncomingUpload:
        """Return an upload in progress, on this machine, that receives the bytes of a new clip, at most `limit_bytes`.

        Use the upload as a context manager.
        """
        with storage_errors():
            return IncomingUpload(self._incoming, limit_bytes)

    def upload(self, incoming: IncomingUpload, media_type: str) -> None:
        """Upload finished bytes to the bucket, in parts."""
        with self._errors_as_unavailable(), incoming.path.open("rb") as file:
            obstore.put(
                self._store,
                self._object_key(incoming.sha256),
                file,
                attributes={"Content-Type": media_type},
                chunk_size=_PART_BYTES,
                max_concurrency=_CONCURRENT_REQUESTS,
            )

    def commit(self, incoming: IncomingUpload, media_type: str) -> None:
        """Check that the bytes that were sent are still in the bucket; if not, send them again.

        They may have been deleted since, by a process that deleted the same clip.
        """
        try:
            self.video(incoming.sha256)
        except NotFound:
            self.upload(incoming, media_type)

    def video(self, sha256: str) -> Blob:
        """Return a clip's bytes, which are read by range. Raises NotFound."""
        return self._blob(self._object_key(sha256))

    def signed_url(self, sha256: str) -> str | None:
        """Return a URL at which anyone who has it can read a clip for a while; None if links are off."""
        if self._link_seconds is None:
            return None
        with self._errors_as_unavailable():
            return obstore.sign(self._store, "GET", self._object_key(sha256), timedelta(seconds=self._link_seconds))

    def thumbnail(self, sha256: str, _number: int, seconds: float) -> Blob:
        """Return the thumbnail (JPEG) of a frame, by its time. Raises NotFound.

        It is fetched whole: a thumbnail is small, and asking for its size would take another request.
        """
        name = _thumbnail_name(seconds)
        data = self._small(sha256, name)
        if data is None:
            raise NotFound(f"stored object {sha256[:12]}/{name} does not exist")
        return Blob(len(data), lambda start, length: data[start : start + length])

    def upload_thumbnails(self, sha256: str, times: Sequence[float], thumbnails: Sequence[bytes]) -> None:
        """Upload the thumbnails of a clip's frames, eight at a time."""

        def put(seconds: float, thumbnail: bytes) -> None:
            obstore.put(self._store, self._object_key(sha256, _thumbnail_name(seconds)), thumbnail)

        with self._errors_as_unavailable(), ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            list(pool.map(put, times, thumbnails))

    def commit_thumbnails(self, _sha256: str, _thumbnails: Sequence[bytes]) -> None:
        """Do nothing: thumbnails have their final names since they were sent."""

    def fingerprint(self, sha256: str) -> bytes | None:
        """Return a clip's fingerprint as it was stored; None if there is none."""
        return self._small(sha256, "fingerprint")

    def put_fingerprint(self, sha256: str, data: bytes) -> None:
        """Replace a clip's fingerprint."""
        with self._errors_as_unavailable():
            obstore.put(self._store, self._object_key(sha256, "fingerprint"), data)

    def delete(self, sha256: str) -> None:
        """Delete a clip and everything derived from it; do nothing if it does not exist."""
        with self._errors_as_unavailable():
            names = [item["path"] for page in obstore.list(self._store, self._object_key(sha256, "")) for item in page]
            if names:
                obstore.delete(self._store, names)

    def remove_stray_uploads(self) -> None:
        """Remove unfinished uploads on this machine whose process died."""
        remove_stray_uploads(self._incoming)

    @contextmanager
    def mark(self, sha256: str) -> Iterator[None]:
        """Mark a clip for the duration of the block, in which its bytes may exist without a row that refers to them.

        The mark stays if the process dies inside the block, or the block raises; `marked` lists the marks.
        """
        with self._errors_as_unavailable():
            obstore.put(self._store, self._mark_key(sha256), b"")
        yield
        self.unmark(sha256)

    def marked(self) -> list[str]:
        """Return the SHA-256 of every clip that carries a mark: its bytes may have no row."""
        start = f"{self._prefix}unsettled/"
        with self._errors_as_unavailable():
            return [item["path"].removeprefix(start) for page in obstore.list(self._store, start) for item in page]

    def unmark(self, sha256: str) -> None:
        """Remove the mark of a clip, once it is known whether its bytes have a row."""
        with self._errors_as_unavailable():
            obstore.delete(self._store, self._mark_key(sha256))

    def check_writable(self) -> None:
        """Raise the error that storing a clip would raise now; leave nothing behind."""
        trial = f"{self._prefix}trial"
        with self._errors_as_unavailable():
            obstore.put(self._store, trial, b"")
            obstore.delete(self._store, trial)

    def _object_key(self, sha256: str, name: str = "video") -> str:
        return f"{self._prefix}{sha256[:2]}/{sha256}/{name}"

    def _mark_key(self, sha256: str) -> str:
        return f"{self._prefix}unsettled/{sha256}"

    def _small(self, sha256: str, name: str) -> bytes | None:
        """Return a whole small object; None if there is none."""
        with self._errors_as_unavailable():
            try:
                return bytes(obstore.get(self._store, self._object_key(sha256, name)).bytes())
            except FileNotFoundError:
                return None

    def _blob(self, object_key: str) -> Blob:
        with self._errors_as_unavailable():
            try:
                size_bytes = obstore.head(self._store, object_key)["size"]
            except FileNotFoundError:
                raise NotFound(f"stored object {object_key.removeprefix(self._prefix)} does not exist") from None

        def read(start: int, length: int) -> bytes:
            length = min(length, size_bytes - start)
            if length <= 0:
                return b""
            with self._errors_as_unavailable():
                try:
                    return bytes(obstore.get_range(self._store, object_key, start=start, length=length))
                except FileNotFoundError:
                    raise NotFound("the clip was deleted while it was being read") from None

        return Blob(size_bytes, read)

    @contextmanager
    def _errors_as_unavailable(self) -> Iterator[None]:
        """Convert errors of the object store and the network to Unavailable."""
        try:
            yield
        except (BaseError, OSError) as error:
            raise Unavailable(f"the store {self._url} cannot be used: {_error_text(error)}") from error


def _thumbnail_name(seconds: float) -> str:
    return f"{round(seconds * 1e6)}.jpg"


def _error_text(error: BaseException) -> str:
    """Return the server's code and message, or the first line of the error, at most 300 characters.

    The other lines of the error only help to debug obstore.
    """
    match = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", str(error), re.DOTALL)
    return f"{match[1]}: {match[2]}" if match else str(error).strip().splitlines()[0][:300]
