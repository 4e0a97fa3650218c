"""REST and search tests with all data on servers: the same tests and service, other settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedding.encoder import Encoder
from service.media import Decoder
from tests.support import services
from tests.support.library import settings_for
from tests.support.rest import upload_folder
from tests.support.rest_properties import RestProperties
from tests.support.search_properties import SearchProperties
from tests.support.server import Service, serving_here


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: Path,
    tiny: Encoder,
    decoder: Decoder,
    postgresql: services.PostgreSQL,
    objects: services.ObjectStore,
    milvus: services.Milvus,
) -> Iterator[Service]:
    """Serve the drawn clips with rows in PostgreSQL, vectors in Milvus and bytes in S3."""
    data = tmp_path_factory.mktemp("servers") / "data"
    with services.used(services.Servers(postgresql, objects, milvus)):
        settings = settings_for(data)
        assert (settings.database[:10], settings.storage[:5], settings.vector_store[:7]) == (
            "postgresql",
            "s3://",
            "milvus+",
        )
        with serving_here(settings, tiny, decoder) as running, running.client() as client:
            upload_folder(client, drawn)
            yield running


class TestRest(RestProperties):
    """REST tests with all data on servers."""


class TestSearch(SearchProperties):
    """Search tests with all data on servers."""
