"""Encode points as Arrow and videos as Parquet, formats that data tools read without configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from service.database.projection_rows import Points


def points_stream(points: Points) -> bytes:
    """Encode the points of a projection as an Arrow IPC stream.

    The columns are video_id (utf8), frame (int16), time (float32, seconds), category (utf8, dictionary-encoded), and x,
    y and z (float32). A projection in two dimensions has no z. Frame and time are null if a point is a whole video. A
    point takes 22 bytes besides its id, and one bit for each column that may be null.
    """
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
    """Write videos to one Parquet file batch by batch, so that a library need not fit into memory.

    Each video is one row. Its columns are id, title, category, caption, filename, path, sha256, duration (seconds),
    width, height, created_at and frame_times. Then follow the vectors `aggregated` and `text`, the list `frames` of
    vectors, and the coordinates. Unknown values are null. Raises OSError.

    Args:
        path: The file to write.
        dimension: Length of every vector; vectors are lists of float32.
        axes: Names of the coordinate columns (float32).
        batches: Rows, each a dictionary from column name to value.
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
