"""Collections of vectors in Milvus."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from service.database.common import chunks
from service.index.rows import Layout, Rows
from service.models import MAX_FRAMES, MAX_NAME_CHARACTERS, Categories, Entries, Kind
from service.models import Vectors as Matrix

if TYPE_CHECKING:
    from pymilvus import MilvusClient
from service.index.milvus.batch import BATCH, Batch
from service.index.milvus.connection import SECONDS, connect, reached

MOST = 16_384  # rows of an answer, Milvus's own limit
_BREADTH = 512  # how many candidates HNSW keeps in sight, at least
_GRAPH = {"M": 32, "efConstruction": 200}


class Collections:
    """What is asked of Milvus: collections are made, filled, searched and read. Raises what pymilvus raises, but `find`
    raises Unavailable.

    `uri` is that of a server, http://[USER:PASSWORD@]HOST:PORT[/DATABASE], or a file PATH.db of Milvus Lite.
    """

    def __init__(self, uri: str, kind: Kind, layout: Layout, client: MilvusClient | None = None) -> None:
        """Connects when first asked, where no `client` is given."""
        self._uri = uri
        self._kind = kind
        self._layout = layout
        self._connecting = threading.Lock()
        self._connection = client

    @property
    def client(self) -> MilvusClient:
        """The connection, made when first asked for."""
        with self._connecting:
            if self._connection is None:
                self._connection = connect(self._uri)
            return self._connection

    def is_there(self, name: str) -> bool:
        """Whether there is a collection of that name."""
        return bool(self.client.has_collection(name, timeout=SECONDS))

    def create(self, name: str, index: str) -> None:
        """Make an empty one; `index` FLAT or HNSW."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("video", DataType.INT64)
        schema.add_field("category", DataType.VARCHAR, max_length=4 * MAX_NAME_CHARACTERS)  # bytes; "" for none
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._layout.width)
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index("vector", index_type=index, metric_type="IP", params=_GRAPH if index == "HNSW" else {})
        self.client.create_collection(name, schema=schema, index_params=indexes, timeout=60)

    def send(self, name: str, batch: Batch) -> None:
        """Delete and upsert what a batch says."""
        for ids in chunks(batch.gone.tolist(), BATCH):
            self.client.delete(name, ids=ids, timeout=SECONDS)
        for places in chunks(range(len(batch.ids)), BATCH):
            rows = [
                {
                    "id": int(batch.ids[n]),
                    "video": int(batch.keys[n]),
                    "category": batch.categories[n] or "",
                    "vector": batch.rows[n],
                }
                for n in places
            ]
            self.client.upsert(name, rows, timeout=4 * SECONDS)

    def await_visible(self, name: str) -> None:
        """Wait until all that was sent can be found: searches need not wait, then, each by itself."""
        nobody, fields = "id in [-1]", ["id"]
        self.client.query(name, filter=nobody, output_fields=fields, consistency_level="Strong", timeout=SECONDS)

    def held(self, name: str, keys: Iterable[int], ids: list[int] | None = None) -> Entries:
        """What the collection holds of these videos, by key and frame; their row numbers are put into `ids`."""
        found: list[dict[str, Any]] = []
        for some in chunks(list(keys), MOST // MAX_FRAMES if self._kind == "frame" else BATCH):
            found += self.client.query(
                name,
                filter=f"video in {some}",
                output_fields=["id", "video", "category", "vector"],
                consistency_level="Strong",
                timeout=SECONDS,
            )
        found.sort(key=lambda row: int(row["id"]))
        if ids is not None:
            ids += [int(row["id"]) for row in found]
        rows = np.array([row["vector"] for row in found], dtype=np.float32).reshape(-1, self._layout.width)
        pictures, captions, captioned = self._layout.split(rows)
        return Entries(
            np.array([row["video"] for row in found], dtype=np.int64),
            pictures,
            captions if self._layout.captions else None,
            captioned,
            tuple(row["category"] or None for row in found),
        )

    def ids(self, name: str) -> Iterator[int]:
        """Every row number."""
        rows = self.client.query_iterator(
            name, batch_size=BATCH, filter="id >= 0", output_fields=["id"], timeout=SECONDS
        )
        try:
            while some := rows.next():
                yield from (int(row["id"]) for row in some)
        finally:
            rows.close()

    def find(self, row: sa.Row[Any], query: Matrix, count: int, where: Categories) -> tuple[Rows, Matrix]:
        """Row numbers and inner products of the best `count`, best first."""
        index: dict[str, Any] = {"ef": min(2 * MOST, max(_BREADTH, count))} if row.index_type == "HNSW" else {}
        with reached():
            hits = self.client.search(
                row.name,
                [query.tolist()],
                filter=_expression(where),
                limit=count,
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": index},
                # Nothing has to be waited for: `await_visible` did, and what serves never goes back.
                consistency_level="Bounded",
                timeout=SECONDS,
            )[0]
        ids = np.array([hit["id"] for hit in hits], dtype=np.int64)
        return ids, np.array([hit["distance"] for hit in hits], dtype=np.float32)

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()


def _expression(where: Categories) -> str:
    """Of categories, in Milvus's language. A video without one has the empty name, which no category can have."""

    def names(some: frozenset[str | None]) -> str:
        # Literals are those of JSON, but as they are: escapes of letters are not understood.
        return json.dumps(sorted(name or "" for name in some), ensure_ascii=False)

    parts = []
    if where.include is not None:
        parts.append(f"category in {names(where.include)}")
    if where.exclude:
        parts.append(f"category not in {names(where.exclude)}")
    return " and ".join(parts)
