"""Reference implementation of the search contract in plain NumPy, independent of the service's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Item:
    """A video of the oracle: unit vectors (D,), `t` None without a caption, `frames` as (seconds, vector)."""

    id: str
    v: np.ndarray
    t: np.ndarray | None
    category: str | None = None
    frames: list[tuple[float, np.ndarray]] = field(default_factory=list)
    duration: float = 1.0


Example = tuple[np.ndarray, np.ndarray | None, float]
"""Visual vector, text vector or None, and weight; a weight below 0 asks for dissimilar videos."""


def _to_examples(vector: np.ndarray, examples: list[tuple[np.ndarray, float]]) -> float:
    """Return the weighted mean of the similarities to the examples, divided by the sum of absolute weights."""
    total = sum(abs(weight) for _, weight in examples)
    return sum(weight * float(np.dot(query.astype(np.float64), vector)) for query, weight in examples) / total


def score(
    items: list[Item], examples: list[Example], w_v: float, w_t: float, *, fusion: str = "cosine"
) -> dict[str, float]:
    """Return every video's score by id, computed from the similarities to each example."""
    seen = [(v, weight) for v, _, weight in examples]
    read = [(t, weight) for _, t, weight in examples if t is not None]
    if not read:
        w_t = 0.0
    s_v = {item.id: _to_examples(item.v, seen) for item in items}
    s_t = {item.id: _to_examples(item.t, read) for item in items if item.t is not None and read}
    mean_v, std_v = np.mean(list(s_v.values())), np.std(list(s_v.values()))
    mean_t, std_t = (np.mean(list(s_t.values())), np.std(list(s_t.values()))) if s_t else (0.0, 0.0)
    scores = {}
    for item in items:
        a, b = s_v[item.id], s_t.get(item.id)
        if fusion == "cosine":
            b = mean_t if b is None else b
        else:
            a = (a - mean_v) / std_v if std_v >= 1e-6 else 0.0
            b = 0.0 if b is None or std_t < 1e-6 else (b - mean_t) / std_t
        scores[item.id] = float((w_v * a + w_t * b) / (w_v + w_t))
    return scores


def best(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Sort scores best first; equal scores (to 9 decimals) by id."""
    return sorted(scores.items(), key=lambda pair: (-round(pair[1], 9), pair[0]))


def rank(
    items: list[Item],
    q_v: np.ndarray,
    q_t: np.ndarray | None,
    w_v: float,
    w_t: float,
    *,
    fusion: str = "cosine",
    without: str | None = None,
    keep: Callable[[Item], bool] = lambda _: True,
) -> list[tuple[str, float]]:
    """Rank the items for one query, best first.

    Args:
        items: The library; statistics are taken over all its items.
        q_v: Visual query vector (D,).
        q_t: Text query vector (D,), or None.
        w_v: Visual weight.
        w_t: Text weight.
        fusion: "cosine" or "zscore".
        without: Id of an item to leave out of the result.
        keep: Returns whether an item may be in the result.

    Returns:
        (id, score) pairs.
    """
    scores = score(items, [(q_v, q_t, 1.0)], w_v, w_t, fusion=fusion)
    return best({item.id: scores[item.id] for item in items if item.id != without and keep(item)})


def diverse(
    items: list[Item],
    examples: list[Example],
    candidates: list[tuple[str, float]],
    w_v: float,
    w_t: float,
    fusion: str,
    diversity: float,
    k: int,
) -> list[str]:
    """Select `k` candidates by maximal marginal relevance, comparing pair by pair; return their ids.

    A missing caption is replaced by the mean text vector.
    """
    captions = [item.t for item in items if item.t is not None]
    mean = np.mean(captions, axis=0, dtype=np.float64) if captions else np.zeros_like(items[0].v)
    by_id = {item.id: item for item in items}
    seen = [_to_examples(item.v, [(v, w) for v, _, w in examples]) for item in items]
    read = [(t, w) for _, t, w in examples if t is not None]
    written = [_to_examples(item.t, read) for item in items if item.t is not None and read]

    def scale(values: list[float], weight: float) -> tuple[float, float]:
        if fusion == "cosine":
            return weight, 0.0
        return (weight / float(np.std(values)), float(np.mean(values))) if np.std(values) >= 1e-6 else (0.0, 0.0)

    if not read:
        w_t = 0.0
    a_v, b_v = scale(seen, w_v / (w_v + w_t))
    a_t, b_t = scale(written, w_t / (w_v + w_t)) if written else (0.0, 0.0)

    def between(x: Item, y: Item) -> float:
        t_x, t_y = (mean if z.t is None else z.t.astype(np.float64) for z in (x, y))
        return a_v * (float(np.dot(x.v.astype(np.float64), y.v)) - b_v) + a_t * (float(np.dot(t_x, t_y)) - b_t)

    left, taken = dict(candidates), []
    while left and len(taken) < k:
        gains = {}
        for name, relevance in left.items():
            near = [between(by_id[name], by_id[other]) for other in taken]
            gains[name] = (1 - diversity) * relevance - diversity * max(near) if near else relevance
        places = {name: place for place, (name, _) in enumerate(candidates)}
        chosen = min(gains, key=lambda name: (-round(gains[name], 9), places[name]))
        taken.append(chosen)
        del left[chosen]
    return taken


def moments(
    items: list[Item], query: np.ndarray, fusion: str = "cosine"
) -> list[tuple[str, float, float, float, float]]:
    """Return (id, score, time, start, end) of every moment, best first; times in seconds.

    The best frame not yet taken starts a moment. The moment takes the adjacent frames whose similarity is within half a
    standard deviation of that frame's.
    """
    everything = [float(np.dot(query.astype(np.float64), vector)) for item in items for _, vector in item.frames]
    mean, std = float(np.mean(everything)), float(np.std(everything))
    found = []
    for item in items:
        values = [float(np.dot(query.astype(np.float64), vector)) for _, vector in item.frames]
        times = [time for time, _ in item.frames]
        owner: list[int | None] = [None] * len(values)
        for peak in sorted(range(len(values)), key=lambda n: (-round(values[n], 9), n)):
            if owner[peak] is not None:
                continue
            members = [peak]
            for direction in (range(peak - 1, -1, -1), range(peak + 1, len(values))):
                for n in direction:
                    if owner[n] is not None or values[n] < values[peak] - 1.5 * std:
                        break
                    members.append(n)
            for n in members:
                owner[n] = peak
            first, last = min(members), max(members)
            start = 0.0 if first == 0 else (times[first - 1] + times[first]) / 2
            end = max(item.duration, times[-1]) if last == len(times) - 1 else (times[last] + times[last + 1]) / 2
            value = values[peak]
            points = value if fusion == "cosine" else (value - mean) / std if std >= 1e-6 else 0.0
            found.append((item.id, points, times[peak], start, end))
    return sorted(found, key=lambda one: (-round(one[1], 9), one[0], one[2]))


def same(answer: list[tuple[str, float]], expected: list[tuple[str, float]], tolerance: float = 1e-5) -> None:
    """Check that two rankings are equal within the tolerance.

    Scores must agree in order. Ids must agree too, except for neighbours whose scores differ by at most the tolerance.
    """
    assert len(answer) == len(expected)
    np.testing.assert_allclose([score for _, score in answer], [score for _, score in expected], atol=tolerance)
    wanted = dict(expected)
    for (name, score), (other, _) in zip(answer, expected, strict=True):
        assert name == other or abs(wanted.get(name, score) - score) <= tolerance
