"""The arithmetic of answers: scores from similarities, diverse selections, frames merged into moments. Knows NumPy
and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.models import Fusion, Weights

Numbers = npt.NDArray[np.float64]

_SMALLEST_STD = 1e-6
_MOMENT_REACH = 0.5
_DIGITS = 9
"""Scores that agree in so many digits are a tie, and ordered by id: sums of the same numbers may differ in the
last digits of a double."""


@dataclass(frozen=True, slots=True)
class Line:
    """The contribution of one modality: a (similarity - b). `mean` is what a missing caption's similarity counts as."""

    a: float
    b: float
    mean: float

    def __call__(self, similarity: Numbers) -> Numbers:
        return self.a * (similarity - self.b)


Statistics = tuple[tuple[float, float], tuple[float, float]]
"""(mean, standard deviation) of the question's similarity over the whole library: of pictures, of captions."""


def lines(statistics: Statistics, weights: Weights, fusion: Fusion) -> tuple[Line, Line]:
    """How the two similarities become a score, as the README says."""
    total = weights.video + weights.text
    made = []
    for (mean, std), weight in zip(statistics, (weights.video, weights.text), strict=True):
        if fusion == "zscore":
            made.append(Line(weight / total / std if std >= _SMALLEST_STD else 0.0, mean, mean))
        else:
            made.append(Line(weight / total, 0.0, mean))
    return made[0], made[1]


def order(score: float, name: str, frame: int = 0) -> tuple[float, str, int]:
    """What hits are sorted by, ascending: the better score first, ties by id and frame."""
    return -round(score, _DIGITS), name, frame


def rounded(scores: Numbers) -> Numbers:
    """As `order` compares them."""
    return np.round(scores, _DIGITS)


def diverse(
    relevance: Numbers,
    pictures: Numbers,
    captions: Numbers,
    both: tuple[Line, Line],
    diversity: float,
    count: int,
    shown: tuple[Numbers, Numbers],
) -> list[int]:
    """The first `count` of candidates by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each next one is the candidate with the greatest (1 - diversity) relevance - diversity x similarity, where
    similarity is that to the most similar among those already taken, measured on the question's own two lines, so that
    both terms have one scale. relevance (N,), best first; pictures and captions (N, D), a missing caption given as
    the mean of all; shown: pictures and captions of what was taken on pages before.
    """
    near = np.full(len(relevance), -np.inf)

    def take(picture: Numbers, caption: Numbers) -> None:
        seen, read = both
        np.maximum(near, seen(pictures @ picture) + read(captions @ caption), out=near)

    for picture, caption in zip(*shown, strict=True):
        take(picture, caption)
    left = np.ones(len(relevance), dtype=np.bool_)
    taken: list[int] = []
    while len(taken) < min(count, len(relevance)):
        gain = relevance if np.isneginf(near).all() else (1 - diversity) * relevance - diversity * near
        best = int(np.argmax(np.where(left, rounded(gain), -np.inf)))
        left[best] = False
        taken.append(best)
        take(pictures[best], captions[best])
    return taken


@dataclass(frozen=True, slots=True)
class Span:
    """A moment of a clip: frames `first` to `last`, of which `best` answers best."""

    first: int
    last: int
    best: int


def spans(similarities: Numbers, std: float) -> list[Span]:
    """A clip's frames, (N,) similarities in order of time, as moments: every frame belongs to one.

    The best frame reaches, in both directions, over neighbours that answer nearly as well: within half a standard
    deviation, over all frames of the library, of the question's similarity. Then the best that is left, and so on.
    What a moment is depends on the clip and the question, not on how many hits were asked for.
    """
    free = np.ones(len(similarities), dtype=np.bool_)
    found = []
    for peak in np.argsort(-rounded(similarities), kind="stable").tolist():
        if not free[peak]:
            continue
        near = free & (similarities >= similarities[peak] - _MOMENT_REACH * std)
        first = last = peak
        while first > 0 and near[first - 1]:
            first -= 1
        while last + 1 < len(near) and near[last + 1]:
            last += 1
        free[first : last + 1] = False
        found.append(Span(first, last, peak))
    return found


def interval(times: Sequence[float], span: Span, end: float | None) -> tuple[float, float]:
    """Seconds from which to which a moment lasts: half-way to the frames before and after it, or the clip's ends."""
    start = (times[span.first - 1] + times[span.first]) / 2 if span.first else 0.0
    if span.last + 1 < len(times):
        return start, (times[span.last] + times[span.last + 1]) / 2
    return start, max(times[span.last], end or 0.0)
