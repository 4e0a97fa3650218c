"""Helpers for an index that follows the database of a vector library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.index.sync import SyncedIndex
from tests.support.vector_library import GENERATION, VectorLibrary


def follow(library: VectorLibrary, folder: Path, **options: Any) -> SyncedIndex:
    return SyncedIndex(library.db, folder / "index", GENERATION, "mean", **options)


def keys_of(follower: SyncedIndex) -> list[int]:
    with follower.current() as (index, _):
        return index.video_pks(index.alive()).tolist()  # type: ignore[attr-defined, no-any-return]


def kind_of(follower: SyncedIndex) -> str:
    with follower.current() as (index, _):
        return index.kind


def names_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "index").iterdir()}
