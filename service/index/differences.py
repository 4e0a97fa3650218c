"""Comparison of the rows of an index with the database."""

from __future__ import annotations

import numpy as np

from service.models import Entries, Keys


def differences(mine: Entries, theirs: Entries, order: Keys) -> list[str]:
    """Return the differences between rows of an index and rows of the database, one sentence each.

    Args:
        mine: Rows of the index, sorted by video primary key.
        theirs: Rows of the same videos in the database.
        order: Positions that sort `theirs` by video primary key, (N,) int64.
    """
    keys = theirs.keys[order]
    if not np.array_equal(mine.keys, keys):
        odd = sorted({*mine.keys.tolist()} ^ {*keys.tolist()}) or sorted({*keys.tolist()})
        return [f"the index and the database differ in the rows of video {key}" for key in odd]
    wrong = mine.captioned != theirs.captioned[order]
    wrong |= (mine.pictures != theirs.pictures[order]).any(axis=1)
    if mine.captions is not None and theirs.captions is not None:
        wrong |= (mine.captions != theirs.captions[order]).any(axis=1)
    names = np.array([mine.categories[n] != theirs.categories[place] for n, place in enumerate(order)], dtype=np.bool_)
    return [
        *(f"the index has other vectors of video {key}" for key in dict.fromkeys(keys[wrong].tolist())),
        *(f"the index has another category of video {key}" for key in dict.fromkeys(keys[names].tolist())),
    ]
