"""Columns as Arrow and as Parquet, the formats that data tools read without being told how. The home of pyarrow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from service.database.maps import Points


def points_stream(points: Points) -> bytes:
    """The points of a map as an Arrow IPC stream, 22 bytes a point beside the ids (and a bit a column that may be
    null): video_id utf8; frame int16 and time float32, seconds, both null where a point is a whole video; category
    utf8 by dictionary; x, y and z float32."""
    import pyarrow as pa

    whole = points.frames < 0
    columns = {
        "video_id": pa.array(points.ids, pa.utf8()),
        "frame": pa.array(points.frames, pa.int16(), mask=whole),
        "time": pa.array(points.times, pa.float32(), mask=whole),
        "category": pa.array(points.categories, pa.utf8()).dictionary_encode(),
    }
    axes = ("x", "y", "z")[: points.coordinates.shape[1]]
    columns |= {axis: pa.array(np.ascontiguousarray(points.coordinates[:, n])) for n, axis in enumerate(axes)}
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_parquet(path: Path, dimension: int, axes: Iterable[str], batches: Iterable[list[dict[str, Any]]]) -> None:
    """Videos as one Parquet file, batch by batch, so that a library need not fit into memory.

    A row a video: id, title, category, caption, filename, path, sha256, duration in seconds, width, height,
    created_at, frame_times, the vectors `aggregated` and `text` as lists of `dimension` float32 and `frames` as a list
    of such, and for each of `axes` a float32 coordinate. Unknown is null. Raises OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.float32(), dimension)
    schema = pa.schema(
        [
            *((name, pa.utf8()) for name in ("id", "title", "category", "caption", "filename", "path", "sha256")),
            ("duration", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("created_at", pa.timestamp("us", tz="UTC")),
            ("frame_times", pa.list_(pa.float64())),
            ("aggregated", vector),
            ("text", vector),
            ("frames", pa.list_(vector)),
            *((axis, pa.float32()) for axis in axes),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
