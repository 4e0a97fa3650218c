"""Arithmetic of search results: scores from similarities, diverse selections, moments from frames.

All functions are pure and depend on NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.models import Fusion, Weights

Numbers = npt.NDArray[np.float64]

_SMALLEST_STD = 1e-6
MOMENT_REACH = 1.5
"""How much worse a frame of a moment may be than its best frame, in standard deviations.

Measured with captions of clips that were joined with another clip (`tests/bench/curves.py`): the moment overlaps the
clip that is meant by 0.74, with 0.5 deviations by 0.38, with 2.0 by 0.78. A larger reach merges more frames of one
scene, so the smaller of the two good ones is taken.
"""
_DIGITS = 9
"""Decimal places in which scores are compared.

Scores that agree in them are a tie, which the id decides: sums of the same numbers can differ in the last digits of a
double.
"""


@dataclass(frozen=True, slots=True)
class Line:
    """Contribution of one modality to the score: a linear function of the similarity s, namely a (s - b).

    `mean` is the mean similarity over the library. It stands in for the similarity of a missing caption.
    """

    a: float
    b: float
    mean: float

    def __call__(self, similarity: Numbers) -> Numbers:
        """Return the contribution of each similarity."""
        return self.a * (similarity - self.b)


Statistics = tuple[tuple[float, float], tuple[float, float]]
"""(mean, standard deviation) of the query's similarity over the whole library: visual first, then text.

Videos without a caption do not count for the text.
"""


def lines(statistics: Statistics, weights: Weights, fusion: Fusion) -> tuple[Line, Line]:
    """Return the contributions of the visual and of the text modality to the score.

    With weight w_m, and mean_m and std_m from `statistics`, the contribution of modality m is a_m (s_m - b_m):

        cosine:  a_m = w_m / (w_v + w_t)            b_m = 0
        zscore:  a_m = w_m / (w_v + w_t) / std_m    b_m = mean_m    (a_m = 0 if std_m < 1e-6)
    """
    total = weights.video + weights.text
    made = []
    for (mean, std), weight in zip(statistics, (weights.video, weights.text), strict=True):
        if fusion == "zscore":
            made.append(Line(weight / total / std if std >= _SMALLEST_STD else 0.0, mean, mean))
        else:
            made.append(Line(weight / total, 0.0, mean))
    return made[0], made[1]


def sort_key(score: float, name: str, frame: int = 0) -> tuple[float, str, int]:
    """Return the ascending sort key of a hit: the greater score first, ties by video id and frame number."""
    return -round(score, _DIGITS), name, frame


def rounded(scores: Numbers) -> Numbers:
    """Round scores as `sort_key` compares them."""
    return np.round(scores, _DIGITS)


def select_diverse(
    relevance: Numbers,
    visual: Numbers,
    text: Numbers,
    lines: tuple[Line, Line],
    diversity: float,
    count: int,
    shown: tuple[Numbers, Numbers],
) -> list[int]:
    """Select candidates by maximal marginal relevance (Carbonell and Goldstein 1998). Return their positions.

    Each step takes the candidate with the greatest

        (1 - diversity) * relevance - diversity * (similarity to the most similar candidate taken so far)

    This similarity is computed with the lines of the query, as a score is, so that both terms have the same scale. As
    long as nothing is taken, relevance alone decides.

    Args:
        relevance: Scores, (N,), best first.
        visual: Visual vectors of the candidates, (N, D).
        text: Text vectors of the candidates, (N, D); the mean of all text vectors if the caption is missing.
        lines: Visual and text line of the query.
        diversity: From 0, relevance only, to 1, diversity only.
        count: Number of candidates to take.
        shown: Visual and text vectors of the hits on the pages before; these count as taken.
    """
    near = np.full(len(relevance), -np.inf)

    def take(visual_vector: Numbers, text_vector: Numbers) -> None:
        visual_line, text_line = lines
        np.maximum(near, visual_line(visual @ visual_vector) + text_line(text @ text_vector), out=near)

    for visual_vector, text_vector in zip(*shown, strict=True):
        take(visual_vector, text_vector)
    left = np.ones(len(relevance), dtype=np.bool_)
    taken: list[int] = []
    while len(taken) < min(count, len(relevance)):
        gain = relevance if np.isneginf(near).all() else (1 - diversity) * relevance - diversity * near
        best = int(np.argmax(np.where(left, rounded(gain), -np.inf)))
        left[best] = False
        taken.append(best)
        take(visual[best], text[best])
    return taken


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """Moment of a clip: the frames `first` to `last`, inclusive. `best` is the best matching frame."""

    first: int
    last: int
    best: int


def spans(similarities: Numbers, std: float, reach: float = MOMENT_REACH) -> list[FrameSpan]:
    """Divide the frames of a clip into moments. Every frame belongs to exactly one moment.

    The best frame and the adjacent frames on both sides form a moment, as far as they match nearly as well: at most
    `reach` standard deviations (`std`) worse. Then the best of the remaining frames forms the next moment, and so on.
    The division depends on the clip and the query only, not on the number of requested hits.

    Args:
        similarities: Similarity of each frame with the query, (N,), in order of time.
        std: Standard deviation of the query's similarity over all frames of the library.
        reach: How far a moment reaches, in standard deviations.
    """
    free = np.ones(len(similarities), dtype=np.bool_)
    found = []
    for peak in np.argsort(-rounded(similarities), kind="stable").tolist():
        if not free[peak]:
            continue
        near = free & (similarities >= similarities[peak] - reach * std)
        first = last = peak
        while first > 0 and near[first - 1]:
            first -= 1
        while last + 1 < len(near) and near[last + 1]:
            last += 1
        free[first : last + 1] = False
        found.append(FrameSpan(first, last, peak))
    return found


def interval(times: Sequence[float], span: FrameSpan, end: float | None) -> tuple[float, float]:
    """Return start and end of a moment in seconds.

    Each lies half-way between the moment and the adjacent frame, or at the start or end of the clip. `times` are the
    times of the frames; `end` is the duration of the clip, if known. All are in seconds.
    """
    start = (times[span.first - 1] + times[span.first]) / 2 if span.first else 0.0
    if span.last + 1 < len(times):
        return start, (times[span.last] + times[span.last + 1]) / 2
    return start, max(times[span.last], end or 0.0)
