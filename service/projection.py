"""Many dimensions to two or three: UMAP, t-SNE, PCA. Knows arrays and nothing else.

Vectors are unit vectors, so Euclidean neighbours and cosine neighbours are the same ones.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

from service.domain import Vectors
from service.errors import InvalidInput

Method = Literal["umap", "tsne", "pca"]

_FEWEST_FOR_NEIGHBOURS = 5


def project(vectors: Vectors, method: Method, dimensions: int, *, seed: int = 0) -> Vectors:
    """(N, dimensions) float32 coordinates of (N, D) vectors, the same for the same seed.

    Fewer than five vectors have no neighbourhoods to keep: they are laid out by PCA whatever the method. UMAP:
    McInnes, Healy, Melville 2018; t-SNE: van der Maaten, Hinton 2008. Raises InvalidInput for no vectors and for
    other dimensions than 2 and 3.
    """
    if dimensions not in (2, 3):
        raise InvalidInput("dimensions", f"must be 2 or 3, not {dimensions}")
    count = len(vectors)
    if count == 0:
        raise InvalidInput("embedding_type", "there is no embedding of this type in the library")
    if method == "pca" or count < _FEWEST_FOR_NEIGHBOURS:
        return _pca(vectors, dimensions)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (count - 1) / 3)
        model = TSNE(dimensions, perplexity=perplexity, init="pca", random_state=seed)
        return np.asarray(model.fit_transform(vectors), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's and scikit-learn's, of umap's own way with them
        import umap

        # Spectral initialisation needs more points than the graph has dimensions to spare.
        init = "spectral" if count > 2 * _FEWEST_FOR_NEIGHBOURS else "random"
        model = umap.UMAP(
            n_components=dimensions, n_neighbors=min(15, count - 1), init=init, random_state=seed, n_jobs=1
        )
        return np.asarray(model.fit_transform(vectors), dtype=np.float32)


def _pca(vectors: Vectors, dimensions: int) -> Vectors:
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    # A singular vector's sign is arbitrary: the largest loading points up, so that a map does not flip.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    coordinates = (left * scale * signs)[:, :dimensions]
    missing = dimensions - coordinates.shape[1]
    return np.asarray(np.pad(coordinates, ((0, 0), (0, missing))), dtype=np.float32)
