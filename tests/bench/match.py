"""How well `match` separates queries that a library can answer from those that it cannot.

    REELSRS_MODEL=starter python -m tests.bench.match

Prints the area under the ROC curve for the queries of tests/assets/match_queries.jsonl over the ordinary shared clips,
over twenty of them (mean of twenty draws), and over 2,000 windows of them, each a clip of its own. Then prints how many
queries are at each level. The thresholds were chosen on the first half of the queries, those at even places.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from service import config
from service.bootstrap import Runtime
from service.database import vector_rows, video_rows
from service.index.layout import Layout
from service.models import Flags, Vectors
from service.operations.folder_import import FolderImport
from service.search.match import MATCHED_HITS, STRONG, WEAK, match_of
from service.search.ranking import Numbers
from service.vectors import normalise
from tests.support.match_queries import MatchQuery, area, ordinary_clips, read

_WINDOWS = 33  # of each clip: 62 clips make 2,046
_FRAMES_PER_WINDOW = 3
_WEIGHT = 0.7  # of what is seen, as in a search by words


def scores(queries: Vectors, noise: Vectors, visual: Vectors, text: Vectors) -> Numbers:
    """Return the match score of each query, (Q,), in a library of N captioned videos: visual and text are (N, D)."""
    layout = Layout(visual.shape[1], has_text=True)
    rows = layout.join(visual, text, np.ones(len(visual), dtype=np.bool_))
    ranked = _WEIGHT * _standard(queries @ visual.T) + (1 - _WEIGHT) * _standard(queries @ text.T)
    best = np.argsort(-ranked, axis=1)[:, :MATCHED_HITS]
    found = [match_of(query, noise, rows[hits], layout).score for query, hits in zip(queries, best, strict=True)]
    return np.array(found, dtype=np.float64)


def _standard(similarities: Vectors) -> Numbers:
    numbers = similarities.astype(np.float64)
    standard: Numbers = (numbers - numbers.mean(axis=1, keepdims=True)) / numbers.std(axis=1, keepdims=True)
    return standard


def _report(name: str, found: Numbers, shown: Flags, near: Flags) -> None:
    harder = area(found[shown | near], shown[shown | near])
    print(f"{name:24} AUC {area(found, shown):.3f}, near misses alone {harder:.3f}")


def _levels(name: str, found: Numbers, shown: Flags) -> None:
    told = []
    for which, part in (("shown", found[shown]), ("not shown", found[~shown])):
        strong, weak = (part >= STRONG).mean(), ((part >= WEAK) & (part < STRONG)).mean()
        told.append(f"{which}: strong {strong:.0%}, weak {weak:.0%}, none {1 - strong - weak:.0%}")
    print(f"{name:24} {'; '.join(told)}")


def _measure(runtime: Runtime, queries: list[MatchQuery]) -> None:
    encoder, generation = runtime.serving.query_encoder, runtime.generation()
    asked = np.stack([encoder.text(query.text).visual for query in queries])
    shown = np.array([query.kind == "shown" for query in queries])
    near = np.array([query.kind == "near miss" for query in queries])
    with runtime.db.read() as connection:
        pks = video_rows.ready_pks(connection)
        videos = video_rows.videos_by_pk(connection, pks)
        kinds = {kind: vector_rows.vectors_of(connection, pks, generation, kind) for kind in ("mean", "text", "frame")}
    visual = np.concatenate([kinds["mean"][pk] for pk in pks])
    text = np.concatenate([kinds["text"][pk] for pk in pks])
    names = np.array([videos[pk].filename for pk in pks])
    noise = encoder.noise()
    found = scores(asked, noise, visual, text)
    _report(f"{len(pks)} clips", found, shown, near)
    rng, areas = np.random.default_rng(0), []
    for _ in range(20):
        kept = rng.choice(len(pks), 20, replace=False)
        can = np.array([not query.relevant or bool(set(query.relevant) & set(names[kept])) for query in queries])
        areas.append(area(scores(asked[can], noise, visual[kept], text[kept]), shown[can]))
    print(f"{'20 clips':24} AUC {np.mean(areas):.3f}, from {min(areas):.3f} to {max(areas):.3f} in twenty draws")
    windows = [
        normalise(frames[rng.choice(len(frames), min(len(frames), _FRAMES_PER_WINDOW), replace=False)].mean(axis=0))
        for frames in (kinds["frame"][pk] for pk in pks)
        for _ in range(_WINDOWS)
    ]
    _report(
        f"{len(windows)} windows", scores(asked, noise, np.stack(windows), text.repeat(_WINDOWS, axis=0)), shown, near
    )
    even = np.arange(len(queries)) % 2 == 0
    _levels("first half of queries", found[even], shown[even])
    _levels("second half of queries", found[~even], shown[~even])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = config.load(data_dir=Path(folder), database_url=None, storage_url=None, vector_store="faiss")
        runtime = Runtime(settings)
        try:
            runtime.initialise()
            FolderImport(runtime, settings.sampling).run(ordinary_clips())
            _measure(runtime, read())
        finally:
            runtime.close()


if __name__ == "__main__":
    main()
