"""Whether anything in the library fits a text: how far the best hit stands above noise.

A search always returns hits, also in a library that has nothing of the kind. Cosine similarities do not tell the
difference: their scale depends on the model, on the text and on the video. Therefore each hit is also compared with
random words, which it has nothing to do with. Its similarity to the query, in standard deviations above its similarity
to these words, is comparable between queries, videos and models. This is test normalisation of speaker
verification (T-norm; Auckenthaler, Carey, Lloyd-Thomas, "Score normalization for text-independent speaker verification
systems", 2000).

A hit may fit by what it shows or by its caption; the better of the two counts.
"""

from __future__ import annotations

import numpy as np

from service.index.layout import Layout
from service.models import Vectors
from service.search.ranking import Numbers
from service.search.results import Match, MatchLevel

MATCHED_HITS = 10
"""Hits of an answer that are looked at, the best first."""

STRONG, WEAK = 8.0, 6.5
"""Least scores of a strong and of a weak match.

Chosen with the model `starter` on one half of 100 queries over 62 captioned clips: about a tenth of the queries that no
clip answers score more than STRONG, and nearly all that a clip answers score more than WEAK. On the other half, the
levels of the answered were 64 % strong, 20 % weak and 16 % none, of the others 4 %, 16 % and 80 %.
"""

_SMALLEST_STD = 1e-6


def match_of(
    query: Vectors, noise: Vectors, rows: Vectors, layout: Layout, *, visual: bool = True, text: bool = True
) -> Match:
    """Return how well the best of some index rows fits a text query.

    Args:
        query: Vector of the query, (D,).
        noise: Vectors of random words, (R, D).
        rows: Index rows of the hits, (N, width), N at least 1.
        layout: Layout of the rows.
        visual: Whether what a video shows counts.
        text: Whether captions count.
    """
    visual_vectors, text_vectors, has_text = layout.split(rows)
    best = -np.inf
    if visual:
        best = float(_normalised(visual_vectors, query, noise).max())
    if text and has_text.any():
        best = max(best, float(_normalised(text_vectors[has_text], query, noise).max()))
    level: MatchLevel = "strong" if best >= STRONG else "weak" if best >= WEAK else "none"
    return Match(level, best)


def _normalised(vectors: Vectors, query: Vectors, noise: Vectors) -> Numbers:
    """Return the similarity of each vector, (N, D), to the query, in deviations above that to the noise; (N,)."""
    similarities = vectors.astype(np.float64) @ np.vstack([query, noise]).astype(np.float64).T
    deviation = np.maximum(similarities[:, 1:].std(axis=1), _SMALLEST_STD)
    scores: Numbers = (similarities[:, 0] - similarities[:, 1:].mean(axis=1)) / deviation
    return scores
