"""A library over REST: upload clips, read all vectors, and compare recommendations with NumPy."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.oracle import Item, rank, same


def upload(client: httpx.Client, clip: Path, wait: float = 60, **form: str) -> httpx.Response:
    """Upload a clip, wait up to `wait` seconds for its embedding, and return the response."""
    with clip.open("rb") as file:
        return client.post("/v1/videos", params={"wait": wait}, files={"file": (clip.name, file)}, data=form)


def items(client: httpx.Client) -> list[Item]:
    """Read all ready videos through `/embeddings`, as items for the oracle."""
    found, cursor = [], None
    while True:
        page = client.get("/v1/videos", params={"limit": 5, **({"cursor": cursor} if cursor else {})}).json()
        for video in page["items"]:
            if video["status"] != "ready":
                continue
            base = f"/v1/videos/{video['id']}/embeddings"
            aggregated = client.get(base, params={"type": "aggregated"}).json()["vectors"][0]
            text = client.get(base, params={"type": "text"})
            assert text.status_code == (200 if video["caption"] else 404)
            t = np.array(text.json()["vectors"][0]) if video["caption"] else None
            found.append(Item(video["id"], np.array(aggregated), t, video["category"]))
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def check_recommendations(client: httpx.Client, everything: list[Item], names: list[str]) -> None:
    """Check that recommendations equal NumPy's over `/embeddings`, including order, at four pairs of weights."""
    by_id = {item.id: item for item in everything}
    for name in names:
        query = by_id[name]
        for w_v, w_t in ((1, 0), (0.7, 0.3), (0.5, 0.5), (0, 1)):
            parameters = {"k": 1000, "video_weight": w_v, "text_weight": w_t}
            answer = client.get(f"/v1/videos/{name}/recommendations", params=parameters)
            if query.t is None and w_v == 0:
                assert answer.status_code == 422
                continue
            assert answer.status_code == 200, answer.text
            hits = answer.json()["items"]
            expected = rank(everything, query.v, query.t, w_v, w_t, without=name)
            same([(hit["video"]["id"], hit["score"]) for hit in hits], expected)
            for hit in hits:
                parts = hit["breakdown"]
                total = parts["video"]["contribution"] + parts["text"]["contribution"]
                assert total == pytest.approx(hit["score"], abs=1e-5)


def upload_folder(client: httpx.Client, folder: Path) -> None:
    """Upload every `<category>/<clip>` one after another, with the caption beside each; wait until each is ready."""
    for clip in sorted(folder.rglob("*.mp4")):
        text = clip.with_suffix(".txt")
        form = {"caption": text.read_text(encoding="utf-8")} if text.exists() else {}
        answer = upload(client, clip, category=clip.parent.name, **form)
        assert answer.status_code == 201, answer.text
