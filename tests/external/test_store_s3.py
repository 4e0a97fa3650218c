"""Store tests on S3: an object is either complete or absent."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import pytest

from service.errors import ConfigurationError, NotFound, Unavailable
from service.storage import Store, open_store
from tests.support import services
from tests.support.store_properties import StoreProperties, read_all, store


class TestStore(StoreProperties):
    """Store tests in an S3 bucket."""

    @pytest.fixture
    def files(self, tmp_path: Path, objects: services.ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Store:
        """Open an empty store."""
        for name, value in objects.environment.items():
            monkeypatch.setenv(name, value)
        return open_store(objects.url(secrets.token_hex(4)), tmp_path)


@pytest.mark.parametrize("prefix", ["lib?1", "a#b/c", "100%25 data", "ünï 日本", "a//b/"])
def test_a_prefix_may_have_any_character(
    tmp_path: Path, objects: services.ObjectStore, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    top = secrets.token_hex(4)
    files = open_store(objects.url(f"{top}/{prefix}"), tmp_path)
    with files.receive(10) as incoming:
        incoming.write(b"bytes")
        incoming.finish()
        with files.mark(incoming.sha256):
            files.upload(incoming, "video/mp4")
            assert files.marked() == [incoming.sha256]
        files.commit(incoming, "video/mp4")
    assert read_all(files.video(incoming.sha256)) == b"bytes"
    placed = f"{prefix.replace('//', '/').strip('/')}/{incoming.sha256[:2]}/{incoming.sha256}/video"
    assert objects.names(top) == {placed}
    files.delete(incoming.sha256)
    assert objects.names(top) == set()


def test_a_bucket_that_cannot_be_had_is_named(
    tmp_path: Path, objects: services.ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="s3://no-such-bucket/x cannot be used: NoSuchBucket"):
        open_store("s3://no-such-bucket/x", tmp_path).check_writable()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{services.free_port()}")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="s3://bucket cannot be used"):
        open_store("s3://bucket", tmp_path).check_writable()
    assert time.monotonic() - began < 30, "a refusal comes soon"
    with pytest.raises(ConfigurationError, match="has no bucket name"):
        open_store("s3:///x", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL: must start with"):
        open_store("s3://bucket", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    assert "amazonaws.com/" in (open_store("s3://bucket", tmp_path, link_seconds=9).signed_url("0" * 64) or "")


def test_two_prefixes_are_two_stores(
    tmp_path: Path, objects: services.ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in objects.environment.items():
        monkeypatch.setenv(name, value)
    one, other = (open_store(objects.url(name), tmp_path) for name in ("team-a", "team-ab"))
    sha256 = store(one, b"clip")
    with pytest.raises(NotFound):
        other.video(sha256)
    other.delete(sha256)
    assert read_all(one.video(sha256)) == b"clip"
    with other.mark(sha256):
        assert one.marked() == []
