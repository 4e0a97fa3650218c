"""The vector index: one protocol, one module per engine. An index is derived; the catalogue is the truth.

A video with picture vector v and caption vector t is stored as x = [v ; t ; 0], one without a caption as
x = [v ; 0 ; 1]. Every question that is linear in v and t is then one inner product with another query vector:

    [a q_v ; b q_t ; c]     c: what a video gets for having no caption

which is the weighted score for any weights, exactly, in one search.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from service.domain import Keys, Vectors


class VectorIndex(Protocol):
    """What `follower.py` and `recommend.py` need of an engine. Keys are those of the catalogue."""

    dimension: int
    exact: bool
    kind: str

    def __len__(self) -> int:
        """Number of videos in the index."""
        ...

    def replace(self, gone: Keys, keys: Keys, pictures: Vectors, captions: Mapping[int, Vectors]) -> None:
        """Take `gone` out (what is not in is ignored), then put `keys` (N,) in with `pictures` (N, D) and those
        captions (D,) that exist. The caller keeps searches out meanwhile."""
        ...

    def search(self, query: Vectors, k: int, *, only: Keys | None, without: Keys) -> tuple[Keys, Vectors]:
        """Keys and inner products with `query` (2 D + 1,) of the best `k`, best first; fewer where there are
        fewer. `only` None searches all."""
        ...

    def get(self, keys: Keys) -> tuple[Vectors, Vectors, Vectors]:
        """Pictures (N, D), captions (N, D) and flags (N,), 1 where there is no caption. KeyError for others."""
        ...

    def similarity(self, picture: Vectors, caption: Vectors) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard deviation, over all that is in the index, of <picture, v> and of <caption, t>."""
        ...

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        ...

    @classmethod
    def load(cls, path: Path, dimension: int) -> VectorIndex:
        """Read what `save` wrote. Raises ValueError where it is something else."""
        ...
