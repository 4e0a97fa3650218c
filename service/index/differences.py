"""Comparison of the rows of an index with the database."""

from __future__ import annotations

import numpy as np

from service.models import Entries, VideoPks


def differences(index_rows: Entries, database_rows: Entries, order: VideoPks) -> list[str]:
    """Return the differences between rows of an index and rows of the database, one sentence each.

    Args:
        index_rows: Rows of the index, sorted by video primary key.
        database_rows: Rows of the same videos in the database.
        order: Positions that sort `database_rows` by video primary key, (N,) int64.
    """
    pks = database_rows.video_pks[order]
    if not np.array_equal(index_rows.video_pks, pks):
        differing = sorted({*index_rows.video_pks.tolist()} ^ {*pks.tolist()}) or sorted({*pks.tolist()})
        return [f"index and database have different rows for video {pk}" for pk in differing]
    wrong = index_rows.has_text != database_rows.has_text[order]
    wrong |= (index_rows.visual != database_rows.visual[order]).any(axis=1)
    if index_rows.text is not None and database_rows.text is not None:
        wrong |= (index_rows.text != database_rows.text[order]).any(axis=1)
    names = np.array(
        [index_rows.categories[n] != database_rows.categories[place] for n, place in enumerate(order)], dtype=np.bool_
    )
    return [
        *(f"index and database have different vectors for video {pk}" for pk in dict.fromkeys(pks[wrong].tolist())),
        *(f"index and database have different categories for video {pk}" for pk in dict.fromkeys(pks[names].tolist())),
    ]
