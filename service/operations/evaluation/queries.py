"""The user's own queries, with the videos that are relevant to each.

A file has one query a line, as JSON: {"query": "a dog on a beach", "relevant": ["5f2d9c31ab047e68", "dog.mp4"]}. A
relevant video is named by its id, by its file name, or by its category and file name if several have that file name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from service.database import video_rows
from service.errors import InvalidInput
from service.models import Vectors
from service.names import normalised
from service.operations.evaluation.figures import Group, Options, Ranking
from service.operations.evaluation.library import Common
from service.operations.evaluation.measures import (
    TEXT,
    VISUAL,
    Catalogue,
    Queries,
    Rows,
    Setting,
    blocks,
    ndcg,
    relevant_ranks,
)

MAX_QUERIES = 10_000
_RECALLS = (1, 5, 10)
_NDCG = 10
_FIELD = "queries"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A query in words, and the names of the relevant videos. `place` names file and line."""

    query: str
    relevant: tuple[str, ...]
    place: str


def read_judgements(path: Path) -> tuple[Judgement, ...]:
    """Read a file of queries; empty lines do not count.

    Raises InvalidInput, which names file and line, if a line cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise InvalidInput(_FIELD, f"{path} cannot be read: {reason}") from error
    found = tuple(_judgement(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip())
    if not 1 <= len(found) <= MAX_QUERIES:
        raise InvalidInput(_FIELD, f"{path} must have from 1 to {MAX_QUERIES:,} queries, not {len(found):,}")
    return found


def _judgement(line: str, place: str) -> Judgement:
    example = 'a line is {"query": "a dog", "relevant": ["ID or file name"]}'
    try:
        parts: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(_FIELD, f"{place}: is not JSON; {example}") from error
    if not isinstance(parts, dict) or set(parts) != {"query", "relevant"}:
        raise InvalidInput(_FIELD, f"{place}: must have exactly the fields `query` and `relevant`; {example}")
    query, relevant = parts["query"], parts["relevant"]
    if not isinstance(query, str) or not query.strip():
        raise InvalidInput(_FIELD, f"{place}: `query` must be a text that is not empty")
    if not isinstance(relevant, list) or not relevant or not all(isinstance(name, str) for name in relevant):
        raise InvalidInput(_FIELD, f"{place}: `relevant` must be a list of at least one id or file name")
    return Judgement(query, tuple(relevant), place)


def relevant_rows(connection: sa.Connection, common: Common, judgements: Sequence[Judgement]) -> list[Rows]:
    """Return the rows of the relevant videos of each query.

    Raises InvalidInput, which names file and line, if a name is unknown or ambiguous, or if its video has no vectors.
    """
    rows = {pk: row for row, pk in enumerate(common.video_pks.tolist())}
    by_name: dict[str, list[int]] = {}
    for row in video_rows.names(connection):
        for name in (row.id, row.filename, f"{row.category}/{row.filename}"):
            by_name.setdefault(normalised(name), []).append(row.key)
    found = []
    for one in judgements:
        numbers = set()
        for name in one.relevant:
            video_pks = by_name.get(normalised(name), [])
            if len(video_pks) != 1:
                several = f"{len(video_pks)} videos have this name; give the id or CATEGORY/FILE"
                why = several if video_pks else "the library has no video with this id or file name"
                raise InvalidInput(_FIELD, f"{one.place}: {name!r}: {why}")
            if video_pks[0] not in rows:
                raise InvalidInput(_FIELD, f"{one.place}: {name!r}: the video has no vectors in each generation yet")
            numbers.add(rows[video_pks[0]])
        found.append(np.array(sorted(numbers), dtype=np.int64))
    return found


def judged(catalogue: Catalogue, vectors: Vectors, relevant: Sequence[Rows], options: Options) -> list[Group]:
    """Measure how well queries in words, (Q, D), find the videos that are relevant to each."""
    count = len(vectors)
    queries = Queries(vectors, vectors, np.ones(count, np.bool_), np.full(count, -1), "nothing")
    settings: dict[Ranking, Setting] = {
        "visual": Setting(VISUAL, "cosine"),
        "text": Setting(TEXT, "cosine"),
        "fused": options.fused("zscore"),
    }
    names = (*(f"recall@{k}" for k in _RECALLS), "mrr", f"ndcg@{_NDCG}")
    values = {ranking: np.zeros((count, len(names))) for ranking in settings}
    for part, similarities in blocks(catalogue, queries):
        for ranking, setting in settings.items():
            scores, ties = similarities.scores(setting)
            for number, row in enumerate(range(part.start, part.stop)):
                ranks = relevant_ranks(scores[number], float(ties[number]), relevant[row])
                recalls = [float(np.mean(ranks <= k)) for k in _RECALLS]
                values[ranking][row] = (*recalls, 1 / ranks[0], ndcg(ranks, _NDCG))
    nothing = (None,) * len(names)
    return [Group("queries", ranking, names, found, 0, nothing) for ranking, found in values.items()]
