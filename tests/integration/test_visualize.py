"""Tests of exports: projections as files and the library as a table, with hostile user text escaped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.bootstrap import Runtime
from service.database import vector_rows, video_rows
from service.database.projection_rows import Embedding
from service.errors import InvalidInput
from service.models import Sampling
from service.operations.export import export_table
from service.operations.folder_import import FolderImport
from service.operations.folder_scan import scan
from service.operations.visualize import write_projection

HOSTILE = "</script><img src=x onerror=alert(1)> $\\frac{"


@pytest.fixture
def library(runtime: Runtime, drawn: Path) -> Runtime:
    """Return the synthetic clips, one of them with hostile text."""
    FolderImport(runtime, Sampling(3)).run(scan(drawn))
    with runtime.db.read() as connection:
        video = video_rows.list_videos(connection, limit=1)[0]
    runtime.ingest.edit(video.id, {"caption": HOSTILE, "title": HOSTILE, "category": "_<b>$x"})
    return runtime


@pytest.mark.parametrize(("embedding", "count"), [("frame", 36), ("aggregated", 12), ("text", 9)])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_page_needs_no_other_file_and_shows_words_as_words(
    library: Runtime, tmp_path: Path, embedding: Embedding, count: int, dimensions: int
) -> None:
    output = tmp_path / "maps" / "map.html"
    spec = library.projections.spec(embedding, "pca", dimensions)
    assert write_projection(library, output, spec).points == pytest.approx(count, abs=1)
    page = output.read_text(encoding="utf-8")
    assert "no category" not in page
    assert "town" in page
    assert "<img src=x" not in page
    assert "onerror" in page  # as text
    # Check the page's own tags only: plotly's script contains addresses of map tiles, which are never requested here.
    assert re.search(r'<(?:script|link|img|iframe)\b[^>]*"http', page) is None


@pytest.mark.parametrize("dimensions", [2, 3])
def test_pictures_are_drawn(library: Runtime, tmp_path: Path, dimensions: int) -> None:
    spec = library.projections.spec("aggregated", "pca", dimensions)
    write_projection(library, tmp_path / "map.png", spec)
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) >= 800
        colours = np.asarray(picture.convert("RGB").resize((200, 150))).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 20
    write_projection(library, tmp_path / "map.SVG", spec)
    drawing = (tmp_path / "map.SVG").read_text(encoding="utf-8")
    assert drawing.startswith("<?xml")
    assert "<script" not in drawing


def test_other_endings_and_empty_libraries_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    spec = runtime.projections.spec("aggregated", "pca", 2)
    with pytest.raises(InvalidInput, match=r"output: must end in \.html, \.png or \.svg, not \.pdf"):
        write_projection(runtime, tmp_path / "map.pdf", spec)
    with pytest.raises(InvalidInput, match="the library has no aggregated embeddings"):
        write_projection(runtime, tmp_path / "map.html", spec)
    assert list(tmp_path.glob("map.*")) == []


def test_the_table_holds_the_library(library: Runtime, tmp_path: Path) -> None:
    state = library.projections.fit_and_wait(library.projections.spec("aggregated", "pca", 3))
    assert export_table(library, tmp_path / "new" / "library.parquet", state).videos == 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["library.parquet"]
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "new" / "library.parquet").to_pylist()}
    points = library.projections.points(state)
    assert set(rows) == set(points.ids)
    generation = library.generation()
    with library.db.read() as connection:
        for video in video_rows.list_videos(connection, limit=100):
            row = rows[video.id]
            assert (row["title"], row["caption"], row["category"]) == (video.title, video.caption, video.category)
            assert row["frame_times"] == list(video.frame_times)
            assert row["created_at"] == video.created_at
            assert Path(row["path"]).suffix == ".mp4"
            for name, kind in (("aggregated", "mean"), ("text", "text"), ("frames", "frame")):
                vectors = vector_rows.vectors(connection, video.pk, generation, kind)  # type: ignore[arg-type]
                if vectors is None:
                    assert row[name] is None
                else:
                    np.testing.assert_array_equal(np.array(row[name], np.float32).reshape(vectors.shape), vectors)
            at = points.coordinates[points.ids.index(video.id)]
            assert [row["x"], row["y"], row["z"]] == at.tolist()
    source = Path(rows[points.ids[0]]["path"])
    hidden = source.with_suffix(".hidden")
    source.rename(hidden)
    try:  # a file that was moved away is still in the library
        export_table(library, tmp_path / "bare.parquet")
    finally:
        hidden.rename(source)
    table = pq.read_table(tmp_path / "bare.parquet")
    assert not {"x", "y", "z"} & set(table.column_names)
    paths = {row["id"]: Path(row["path"]) for row in table.select(["id", "path"]).to_pylist()}
    assert re.fullmatch("[0-9a-f]{64}", paths[points.ids[0]].parent.name)
    assert paths[points.ids[0]].is_file()
