"""Queries that the ordinary shared clips answer, and queries that they do not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.models import Flags
from service.operations.folder_scan import Entry, scan
from service.search.ranking import Numbers
from tests.support.paths import ASSETS, SHARED_CLIPS

# Folders of clips that are not ordinary: odd files, and copies, which no caption tells apart.
LEFT_OUT = ("odd_files", "near_duplicates", "near_identical_asl")


@dataclass(frozen=True)
class MatchQuery:
    """A query and the names of the shared clips that answer it. A near miss is a thing of a scene that a clip shows."""

    text: str
    kind: Literal["shown", "near miss", "not shown"]
    relevant: tuple[str, ...]


def read() -> list[MatchQuery]:
    """Return the hundred queries."""
    lines = (ASSETS / "match_queries.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [MatchQuery(row["query"], row["kind"], tuple(row["relevant"])) for row in rows]


def ordinary_clips() -> list[Entry]:
    """Return the shared clips that are ordinary."""
    return [entry for entry in scan(SHARED_CLIPS) if entry.category not in LEFT_OUT]


def area(scores: Numbers, positive: Flags) -> float:
    """Return the area under the ROC curve: how often a positive scores higher than another; a tie counts half."""
    differences = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))
