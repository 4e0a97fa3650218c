"""Milvus collections of vectors: create, fill, search and read them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from service.database.common import chunks
from service.index.layout import Layout, RowNumbers
from service.models import MAX_FRAMES, MAX_NAME_CHARACTERS, CategoryFilter, Entries, Kind
from service.models import Vectors as Matrix

if TYPE_CHECKING:
    from pymilvus import MilvusClient
from service.index.milvus.batch import BATCH_SIZE, Batch
from service.index.milvus.connection import REQUEST_TIMEOUT_SECONDS, connect, translate_errors

MAX_RESPONSE_ROWS = 16_384  # rows in a response, Milvus's own limit
_MIN_EF = 512  # candidates in HNSW's search list (`ef`), at least
_HNSW_PARAMETERS = {"M": 32, "efConstruction": 200}


class Collections:
    """Operations on Milvus collections. Raises the errors of pymilvus, except that `search` raises Unavailable.

    `uri` is that of a server, http://[USER:PASSWORD@]HOST:PORT[/DATABASE], or a file PATH.db of Milvus Lite.
    """

    def __init__(self, uri: str, kind: Kind, layout: Layout, client: MilvusClient | None = None) -> None:
        """Use `client` if it is given; otherwise connect at first use."""
        self._uri = uri
        self._kind = kind
        self._layout = layout
        self._connecting = threading.Lock()
        self._connection = client

    @property
    def client(self) -> MilvusClient:
        """Client of Milvus, connected at first use."""
        with self._connecting:
            if self._connection is None:
                self._connection = connect(self._uri)
            return self._connection

    def exists(self, name: str) -> bool:
        """Return whether the collection exists."""
        return bool(self.client.has_collection(name, timeout=REQUEST_TIMEOUT_SECONDS))

    def create(self, name: str, index: str) -> None:
        """Create an empty collection whose index is FLAT (exact) or HNSW (approximate)."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("video", DataType.INT64)
        schema.add_field("category", DataType.VARCHAR, max_length=4 * MAX_NAME_CHARACTERS)  # bytes; "" for none
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._layout.width)
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index(
            "vector", index_type=index, metric_type="IP", params=_HNSW_PARAMETERS if index == "HNSW" else {}
        )
        self.client.create_collection(name, schema=schema, index_params=indexes, timeout=60)

    def send(self, name: str, batch: Batch) -> None:
        """Delete and upsert the rows of a batch."""
        for ids in chunks(batch.deleted_ids.tolist(), BATCH_SIZE):
            self.client.delete(name, ids=ids, timeout=REQUEST_TIMEOUT_SECONDS)
        for places in chunks(range(len(batch.ids)), BATCH_SIZE):
            rows = [
                {
                    "id": int(batch.ids[n]),
                    "video": int(batch.video_pks[n]),
                    "category": batch.categories[n] or "",
                    "vector": batch.rows[n],
                }
                for n in places
            ]
            self.client.upsert(name, rows, timeout=4 * REQUEST_TIMEOUT_SECONDS)

    def await_visible(self, name: str) -> None:
        """Wait until every row that was sent can be found.

        Then no search needs to wait for that by itself.
        """
        no_rows, fields = "id in [-1]", ["id"]
        self.client.query(
            name, filter=no_rows, output_fields=fields, consistency_level="Strong", timeout=REQUEST_TIMEOUT_SECONDS
        )

    def fetch(self, name: str, video_pks: Iterable[int], ids: list[int] | None = None) -> Entries:
        """Return the rows of these videos in the collection, sorted by video primary key and frame.

        If `ids` is given, the ids of the rows are appended to that list.
        """
        found: list[dict[str, Any]] = []
        for batch_pks in chunks(
            list(video_pks), MAX_RESPONSE_ROWS // MAX_FRAMES if self._kind == "frame" else BATCH_SIZE
        ):
            found += self.client.query(
                name,
                filter=f"video in {batch_pks}",
                output_fields=["id", "video", "category", "vector"],
                consistency_level="Strong",
                timeout=REQUEST_TIMEOUT_SECONDS,
            )
        found.sort(key=lambda row: int(row["id"]))
        if ids is not None:
            ids += [int(row["id"]) for row in found]
        rows = np.array([row["vector"] for row in found], dtype=np.float32).reshape(-1, self._layout.width)
        visual, text, has_text = self._layout.split(rows)
        return Entries(
            np.array([row["video"] for row in found], dtype=np.int64),
            visual,
            text if self._layout.has_text else None,
            has_text,
            tuple(row["category"] or None for row in found),
        )

    def ids(self, name: str) -> Iterator[int]:
        """Yield the id of every row."""
        rows = self.client.query_iterator(
            name, batch_size=BATCH_SIZE, filter="id >= 0", output_fields=["id"], timeout=REQUEST_TIMEOUT_SECONDS
        )
        try:
            while batch := rows.next():
                yield from (int(row["id"]) for row in batch)
        finally:
            rows.close()

    def search(self, row: sa.Row[Any], query: Matrix, count: int, where: CategoryFilter) -> tuple[RowNumbers, Matrix]:
        """Return the ids of the best `count` rows and their inner products with `query`, best first.

        Raises Unavailable if Milvus fails.
        """
        index: dict[str, Any] = (
            {"ef": min(2 * MAX_RESPONSE_ROWS, max(_MIN_EF, count))} if row.index_type == "HNSW" else {}
        )
        with translate_errors():
            hits = self.client.search(
                row.name,
                [query.tolist()],
                filter=_expression(where),
                limit=count,
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": index},
                # No need to wait: `await_visible` did, and a collection that serves never returns to an older state.
                consistency_level="Bounded",
                timeout=REQUEST_TIMEOUT_SECONDS,
            )[0]
        ids = np.array([hit["id"] for hit in hits], dtype=np.int64)
        return ids, np.array([hit["distance"] for hit in hits], dtype=np.float32)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def _expression(where: CategoryFilter) -> str:
    """Convert a category filter to Milvus's filter language.

    A video without a category is stored with the empty name, which no category can have.
    """

    def names(categories: frozenset[str | None]) -> str:
        # Milvus reads string literals of JSON, but not JSON's escapes of letters.
        return json.dumps(sorted(name or "" for name in categories), ensure_ascii=False)

    parts = []
    if where.include is not None:
        parts.append(f"category in {names(where.include)}")
    if where.exclude:
        parts.append(f"category not in {names(where.exclude)}")
    return " and ".join(parts)
