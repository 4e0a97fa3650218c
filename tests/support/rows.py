"""Read and prepare the database rows behind a service, and compare recommendations with the rows."""

from __future__ import annotations

import time
from typing import Any

import httpx
import sqlalchemy as sa

from service.database import db, generation_rows, vector_rows, video_rows
from service.database.db import Database
from service.models import Probe, Sampling, Video
from tests.support.oracle import Item, best, same, score


def add_row(
    connection: sa.Connection,
    number: int,
    *,
    caption: str | None = None,
    category: str | None = None,
    frames: int = 1,
    seconds: float = 3.0,
) -> Video:
    """Add a made-up video, in the database only. Different numbers give different content hashes."""
    return video_rows.add_video(
        connection,
        sha256=f"{number:064x}",
        size_bytes=1,
        filename="a.mp4",
        title="a",
        caption=caption,
        category=category,
        sampling=Sampling(frames),
        probe=Probe("video/mp4", "h264", 64, 48, seconds, 10.0),
    )


def owners(url: str) -> set[str]:
    """Return the owners that hold jobs in the database at `url`."""
    database = Database(url)
    with database.read() as connection:
        held = connection.execute(sa.select(db.jobs.c.owner).where(db.jobs.c.owner.is_not(None)))
        found = set(held.scalars())
    database.close()
    return found


def end_leases(url: str) -> None:
    """Expire every lease, so that any worker can claim what a killed worker held. No worker may be running."""
    database = Database(url)
    with database.write() as connection:
        for held in (db.jobs, db.projections):
            connection.execute(sa.update(held).where(held.c.owner.is_not(None)).values(lease_expires_at=0.0))
    database.close()


def settled(client: httpx.Client) -> list[dict[str, Any]]:
    """Wait until every video is ready or failed; return all videos. Raises AssertionError after about two minutes."""
    for _ in range(1200):
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = client.get("/v1/videos", params={"limit": 100, **({"cursor": cursor} if cursor else {})}).json()
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        if all(video["status"] in ("ready", "failed") for video in found):
            return found
        time.sleep(0.1)
    raise AssertionError([video for video in found if video["status"] not in ("ready", "failed")])


def items_of_rows(connection: sa.Connection, videos: dict[str, dict[str, Any]]) -> list[Item]:
    """Read the vectors of these videos from the database, as items for the oracle."""
    generation = generation_rows.active_generation(connection)
    assert generation is not None
    keys = {row.id: row.key for row in connection.execute(sa.select(db.videos.c.id, db.videos.c.key))}
    items = []
    for name in videos:
        mean = vector_rows.vectors(connection, keys[name], generation, "mean")
        text = vector_rows.vectors(connection, keys[name], generation, "text")
        assert mean is not None
        assert text is not None
        items.append(Item(name, mean[0], text[0]))
    return items


def check_against_rows(client: httpx.Client, items: list[Item]) -> None:
    """Check that recommendations equal NumPy's over the items read from the database."""
    for one in items[:: max(1, len(items) // 5)]:
        found = client.get(f"/v1/videos/{one.id}/recommendations", params={"k": 50}).json()["items"]
        scores = score(items, [(one.v, one.t, 1.0)], 0.7, 0.3)
        expected = best({name: value for name, value in scores.items() if name != one.id})[:50]
        same([(hit["video"]["id"], hit["score"]) for hit in found], expected)
