"""Name the arrays of a fit for storage, and identify the vectors that it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from service.database.projection_rows import ProjectionSpec
from service.models import Vectors, VideoPks


def vectors_digest(spec: ProjectionSpec, video_pks: VideoPks, counts: VideoPks, vectors: Vectors) -> str:
    """Return 32 hex digits (of a SHA-256) that identify the generation, kind and vectors of a fit.

    `video_pks` (M,) are primary keys, `counts` (M,) the number of vectors of each video, and `vectors` (N, D) all of
    them.
    """
    found = hashlib.sha256(f"{spec.generation} {spec.kind}".encode())
    for array in (video_pks, counts, vectors):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:32]


def prefixed(model: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Prefix the names of a fit's `model` arrays, so that one archive can hold them with other arrays."""
    return {f"model_{name}": array for name, array in model.items()}


def unprefixed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the `model` arrays of a fit from an archive, without the prefix of their names."""
    return {name.removeprefix("model_"): array for name, array in arrays.items() if name.startswith("model_")}
