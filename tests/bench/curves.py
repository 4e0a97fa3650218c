"""Curves and paired differences that the defaults of searches were chosen by, over the ordinary shared clips.

    REELSRS_MODEL=starter python -m tests.bench.curves service/docs/images/curves.svg

Samples 32 frames of each clip. Draws precision@5 and recall@5 over weights, fusions and aggregations, recall@5 over the
number of frames, and how well a moment covers its part of a clip over how far a moment reaches. Prints each default
beside its alternatives, with 95 % intervals of the paired differences.

For the moments, each clip is joined with another one, and its caption is searched for: the moment should cover the
frames of the clip and none of the other (intersection over union).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from service import config
from service.bootstrap import Runtime
from service.models import Aggregation, Fusion, Generation, Sampling, Vectors, Weights
from service.operations.evaluation.bootstrap import Bootstrap
from service.operations.evaluation.evaluate import evaluate
from service.operations.evaluation.figures import Options
from service.operations.evaluation.library import Common, common_videos, frame_pages, read_catalogue
from service.operations.evaluation.measures import (
    VISUAL,
    Catalogue,
    Numbers,
    Queries,
    Setting,
    evenly,
    own_precisions,
    own_ranks,
    recall,
    reciprocal,
)
from service.operations.evaluation.report import curve_panels
from service.operations.folder_import import FolderImport
from service.operations.visualize import Curve, Panel, draw_curves
from service.search.ranking import MOMENT_REACH, spans
from service.vectors import aggregate
from tests.support.match_queries import ordinary_clips

_FRAMES, _DEFAULT_FRAMES = 32, 10
_REACHES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_GREY = "#7d8590"  # can be read on white and on black: an image does not know the colour of its page
_BOOTSTRAP = Bootstrap(0)


class Measured:
    """Catalogues of one library, with fewer frames on request, and its frames by clip."""

    def __init__(self, connection: sa.Connection, generation: Generation, common: Common) -> None:
        self.frames: list[Vectors] = []
        for page in frame_pages(connection, generation, common):
            self.frames += np.split(page.frames, page.starts[1:])
        self._whole = read_catalogue(connection, generation, common, "mean")
        self.texts = self._whole.text
        self.rows = np.arange(len(self.frames))

    def catalogue(self, aggregation: Aggregation = "mean", frames: int = _DEFAULT_FRAMES) -> Catalogue:
        """Return the library as if only so many frames had been sampled."""
        few = [aggregate(clip[evenly(len(clip), frames)], None) for clip in self.frames]
        visual = np.stack([one.mean if aggregation == "mean" else one.max for one in few])
        return Catalogue(visual, self.texts, self._whole.has_text, self._whole.categories)

    def by_picture(self, aggregation: Aggregation = "mean", frames: int = _DEFAULT_FRAMES) -> Numbers:
        """Return recall@5 and reciprocal rank of each caption, (Q, 2)."""
        catalogue = self.catalogue(aggregation, frames)
        ranks = own_ranks(catalogue, Queries.captions(catalogue, self.rows), [Setting(VISUAL, "cosine")])[0]
        return np.stack([recall(ranks, 5), reciprocal(ranks)], axis=1)

    def neighbours(self, video_weight: float, fusion: Fusion) -> Numbers:
        """Return precision@5 of each clip's neighbours, (Q, 1)."""
        catalogue = self.catalogue()
        setting = Setting(Weights(video_weight, 1 - video_weight), fusion)
        return own_precisions(catalogue, Queries.videos(catalogue, self.rows), [setting], (5,))[0].T

    def covered(self, reach: float) -> Numbers:
        """Return how well the best moment covers the clip in a pair of clips, (Q, 1)."""
        rng, every, found = np.random.default_rng(0), np.concatenate(self.frames), []
        for row, text in enumerate(self.texts):
            other = int(rng.choice(np.delete(self.rows, row)))
            joined = [self.frames[row], self.frames[other]]
            own = np.repeat([True, False], [len(one) for one in joined])
            similarities = (np.concatenate(joined) @ text).astype(np.float64)
            best = spans(similarities, float((every @ text).std()), reach)[0]
            inside = (np.arange(len(own)) >= best.first) & (np.arange(len(own)) <= best.last)
            found.append((inside & own).sum() / (inside | own).sum())
        return np.array(found)[:, None]


def _told(values: Numbers) -> str:
    intervals = _BOOTSTRAP.intervals(values)
    return ", ".join(f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in intervals)


def _compare(measured: Measured) -> None:
    base = measured.by_picture()
    print("recall@5 and MRR of captions by picture:", _told(base))
    print("  max minus mean:", _told(measured.by_picture("max") - base))
    for frames in (1, 3, 5, 20, 32):
        print(f"  {frames} frames minus {_DEFAULT_FRAMES}:", _told(measured.by_picture(frames=frames) - base))
    near = measured.neighbours(0.7, "cosine")
    print("precision@5 of neighbours, weights 0.7 and 0.3, cosine:", _told(near))
    print("  zscore minus cosine:", _told(measured.neighbours(0.7, "zscore") - near))
    for weight in (0.0, 0.3, 0.5, 0.9, 1.0):
        print(f"  video weight {weight} minus 0.7:", _told(measured.neighbours(weight, "cosine") - near))
    moments = measured.covered(MOMENT_REACH)
    print(f"coverage of moments that reach {MOMENT_REACH} deviations:", _told(moments))
    for reach in _REACHES:
        print(f"  {reach} minus {MOMENT_REACH}:", _told(measured.covered(reach) - moments))


def _moment_panel(measured: Measured) -> Panel:
    intervals = [_BOOTSTRAP.intervals(measured.covered(reach))[0] for reach in _REACHES]
    values: Sequence[Sequence[float]] = [[getattr(one, name) for one in intervals] for name in ("value", "low", "high")]
    curve = Curve("mean, cosine", 0, False, _REACHES, *values)
    return Panel("Moments: overlap with the clip that is meant", "reach in deviations", (curve,))


def main() -> None:
    """Embed the clips into a temporary library, print the comparison, and write the drawing."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        settings = config.load(data_dir=Path(folder), database_url=None, storage_url=None, vector_store="faiss")
        runtime = Runtime(settings)
        try:
            runtime.initialise()
            FolderImport(runtime, Sampling(_FRAMES)).run(ordinary_clips())
            generation = runtime.generation()
            with runtime.db.read() as connection:
                measured = Measured(connection, generation, common_videos(connection, [generation]))
            _compare(measured)
            found = evaluate(runtime.db, [generation], Options(curves=True)).generations[0]
            drawing = draw_curves((*curve_panels(found), _moment_panel(measured)), "guide", columns=2)
            target.write_text(drawing.replace("currentColor", _GREY) + "\n", encoding="utf-8")
        finally:
            runtime.close()


if __name__ == "__main__":
    main()
