"""The contract's score in plain NumPy, over plain lists, written apart from the service's code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Item:
    """A video of the oracle."""

    id: str
    v: np.ndarray
    t: np.ndarray | None
    category: str | None = None


def rank(
    items: list[Item],
    q_v: np.ndarray,
    q_t: np.ndarray | None,
    w_v: float,
    w_t: float,
    *,
    fusion: str = "cosine",
    without: str | None = None,
    keep: object = None,
) -> list[tuple[str, float]]:
    """(id, score) of every item but `without` that `keep` lets through, best first, ties by id."""
    if q_t is None:
        w_t = 0.0
    s_v = {item.id: float(np.dot(q_v.astype(np.float64), item.v)) for item in items}
    s_t = {
        item.id: float(np.dot(q_t.astype(np.float64), item.t))
        for item in items
        if item.t is not None and q_t is not None
    }
    mean_v, std_v = np.mean(list(s_v.values())), np.std(list(s_v.values()))
    mean_t, std_t = (np.mean(list(s_t.values())), np.std(list(s_t.values()))) if s_t else (0.0, 0.0)
    scores = {}
    for item in items:
        if item.id == without or (keep is not None and not keep(item)):  # type: ignore[operator]
            continue
        seen, read = s_v[item.id], s_t.get(item.id)
        if fusion == "cosine":
            a, b = seen, mean_t if read is None else read
        else:
            a = (seen - mean_v) / std_v if std_v >= 1e-6 else 0.0
            b = 0.0 if read is None or std_t < 1e-6 else (read - mean_t) / std_t
        scores[item.id] = (w_v * a + w_t * b) / (w_v + w_t)
    return sorted(scores.items(), key=lambda pair: (-round(pair[1], 9), pair[0]))


def same(answer: list[tuple[str, float]], expected: list[tuple[str, float]], tolerance: float = 1e-5) -> None:
    """The scores are equal in order; the ids too, but for neighbours whose scores differ by less than the
    tolerance."""
    assert len(answer) == len(expected)
    np.testing.assert_allclose([score for _, score in answer], [score for _, score in expected], atol=tolerance)
    wanted = dict(expected)
    for (name, score), (other, _) in zip(answer, expected, strict=True):
        assert name == other or abs(wanted.get(name, score) - score) <= tolerance
