"""Connection to Milvus: set up pymilvus, connect, convert errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from service.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from pymilvus import MilvusClient

PREFIX = "milvus+"
REQUEST_TIMEOUT_SECONDS = 10.0  # time limit of a request to Milvus


def require_pymilvus() -> None:
    """Check that pymilvus is installed, and silence its logs. Raises ConfigurationError if it is missing."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library prints when connections open and close
    try:
        import pymilvus  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"REELSRS_VECTOR_STORE: Milvus needs a package that is missing ({error}); run pip install 'reelsrs[milvus]'"
        ) from error
    # pymilvus logs every exception that it raises, with a traceback. The code that catches it logs it once.
    for name in ("pymilvus", "grpc._server"):  # the second is of Milvus Lite, which runs in this process
        logging.getLogger(name).setLevel(logging.CRITICAL)


def connect(uri: str) -> MilvusClient:
    """Connect to a server, or open a file of Milvus Lite."""
    from pymilvus import MilvusClient

    if "://" not in uri:
        return MilvusClient(uri, timeout=REQUEST_TIMEOUT_SECONDS)
    url = make_url(uri)
    return MilvusClient(
        f"{url.drivername}://{url.host}:{url.port or 19530}",
        user=url.username or "",
        password=url.password or "",
        db_name=url.database or "",
        timeout=REQUEST_TIMEOUT_SECONDS,
    )


@contextmanager
def translate_errors() -> Iterator[None]:
    """Convert exceptions of pymilvus and gRPC to Unavailable."""
    import grpc
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        message = " ".join(str(getattr(error, "message", "") or error).split())
        raise Unavailable(f"the vector store cannot be reached: {message[:300]}") from error
