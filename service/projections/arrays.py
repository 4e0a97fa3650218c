"""Fits as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from service.database.maps import Spec
from service.models import Keys, Vectors


def digest(spec: Spec, keys: Keys, counts: Keys, vectors: Vectors) -> str:
    found = hashlib.sha256(f"{spec.generation} {spec.kind}".encode())
    for array in (keys, counts, vectors):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:32]


def prefixed(model: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {f"model_{name}": array for name, array in model.items()}


def unprefixed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("model_"): array for name, array in arrays.items() if name.startswith("model_")}
