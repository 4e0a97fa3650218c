"""Maps: repeatable, of any number of points, keeping near what is near."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.domain import Sampling
from service.errors import InvalidInput
from service.folder import FolderImport, scan
from service.projection import Method, project
from service.runtime import Runtime
from service.vectors import normalise
from service.visualize import write_map

METHODS: tuple[Method, ...] = ("umap", "tsne", "pca")


def _clusters(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 32)) * 3
    labels = np.arange(count) % 3
    return normalise(centres[labels] + rng.standard_normal((count, 32)) * 0.3), labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_neighbours_stay_neighbours_and_the_same_seed_gives_the_same_map(method: Method, dimensions: int) -> None:
    vectors, labels = _clusters(60)
    made = project(vectors, method, dimensions, seed=3)
    assert (made.shape, made.dtype) == ((60, dimensions), np.float32)
    distances = np.linalg.norm(made[:, None] - made[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.9
    np.testing.assert_array_equal(project(vectors, method, dimensions, seed=3), made)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 11])
def test_few_points_and_equal_points(method: Method, count: int) -> None:
    for vectors in (_clusters(count)[0], np.tile(_clusters(1)[0], (count, 1))):
        made = project(vectors, method, 3)
        assert made.shape == (count, 3)
        assert np.isfinite(made).all()


def test_nothing_and_other_dimensions_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no embedding"):
        project(np.zeros((0, 4), np.float32), "pca", 2)
    with pytest.raises(InvalidInput, match="2 or 3"):
        project(np.ones((3, 4), np.float32), "pca", 4)


def test_pca_is_the_projection_of_greatest_variance() -> None:
    vectors, _ = _clusters(40)
    made = project(vectors, "pca", 2)
    spread = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(made, axis=0), spread, rtol=1e-4)


def test_a_map_of_a_library_is_one_file_that_needs_no_other(runtime: Runtime, drawn: Path, tmp_path: Path) -> None:
    FolderImport(runtime, Sampling(3)).run(scan(drawn))
    clip = sorted(drawn.rglob("*.txt"))[0]
    hostile = "</script><img src=x onerror=alert(1)>"
    found = runtime.recommender  # the library is there
    assert found is not None
    with runtime.db.read() as connection:
        from service import catalog

        video = catalog.list_videos(connection, limit=1)[0]
    runtime.ingest.edit(video.id, {"caption": hostile, "title": hostile})
    for embedding, count in (("frame", 36), ("aggregated", 12), ("text", None)):
        output = tmp_path / "maps" / f"{embedding}.html"
        points = write_map(runtime, output, embedding=embedding, method="pca", dimensions=2)  # type: ignore[arg-type]
        assert count is None or points == count
        page = output.read_text(encoding="utf-8")
        assert clip.parent.name in page
        assert "<img src=x" not in page
        assert 'src="http' not in page
    with pytest.raises(InvalidInput, match=r"\.html"):
        write_map(runtime, tmp_path / "map.png", embedding="frame", method="pca", dimensions=2)
