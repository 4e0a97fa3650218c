"""Tests of all kinds of searches over REST: examples, images, clips, moments, pages, near-duplicates."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.media.synthetic.drawing import draw_frame
from service.media.synthetic.scenes import distinct_scenes
from tests.support.clips import ClipMaker, numbered, quarters
from tests.support.oracle import best, same, score
from tests.support.rest import items, upload


def image_file(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Encode pixels (H, W, 3) uint8 as an image file of the given format."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def by_image(client: httpx.Client, data: bytes, **form: Any) -> httpx.Response:
    """Search with a query image."""
    return client.post("/v1/search/image", files={"file": ("query", data)}, data=form)


def names(answer: httpx.Response) -> list[str]:
    """Return the video ids of the search results."""
    assert answer.status_code == 200, answer.text
    return [hit["video"]["id"] for hit in answer.json()["items"]]


class SearchProperties:
    """Search tests. A subclass gives a fixture `service` with the twelve drawn clips, which tests do not change."""

    @pytest.fixture
    def ready(self, client: httpx.Client) -> list[dict[str, Any]]:
        """Return the drawn videos, the oldest first."""
        return client.get("/v1/videos", params={"status": "ready", "limit": 100}).json()["items"][::-1]  # type: ignore[no-any-return]

    def test_more_like_these_and_less_like_those_equals_the_oracle(
        self, client: httpx.Client, ready: list[dict[str, Any]]
    ) -> None:
        everything = {item.id: item for item in items(client)}
        one, two, three, four = (video["id"] for video in ready[:4])
        asked = {
            "positive": [{"id": one, "weight": 2}, {"id": two}],
            "negative": [{"id": three, "weight": 0.5}],
            "exclude": [four, "gone"],
            "k": 100,
        }
        examples = [
            (everything[name].v, everything[name].t, weight) for name, weight in ((one, 2.0), (two, 1.0), (three, -0.5))
        ]
        for fusion in ("cosine", "zscore"):
            answer = client.post("/v1/recommendations", json={**asked, "fusion": fusion})
            scores = score(list(everything.values()), examples, 0.7, 0.3, fusion=fusion)
            expected = best({name: value for name, value in scores.items() if name not in (one, two, three, four)})
            same([(hit["video"]["id"], hit["score"]) for hit in answer.json()["items"]], expected)
        single = client.post("/v1/recommendations", json={"positive": [{"id": one}]}).json()
        assert single == client.get(f"/v1/videos/{one}/recommendations").json()
        scoped = client.post("/v1/recommendations", json={**asked, "category_mode": "other"}).json()["items"]
        assert not {hit["video"]["category"] for hit in scoped} & {ready[0]["category"], ready[1]["category"]}

    def test_what_is_wrong_with_a_question_is_named(self, client: httpx.Client, ready: list[dict[str, Any]]) -> None:
        one = ready[0]["id"]
        wrong: list[tuple[dict[str, Any], int, str]] = [
            ({}, 422, "positive"),
            ({"positive": [{"id": one, "weight": 0}]}, 422, "positive.weight"),
            ({"positive": [{"id": one, "weight": -1}]}, 422, "positive.weight"),
            ({"positive": [{"id": one}], "diversity": 2}, 422, "diversity"),
            ({"positive": [{"id": one}], "min_score": "much"}, 422, "min_score"),
            ({"positive": [{"id": one}], "cursor": "nonsense"}, 422, "cursor"),
            ({"positive": [{"id": one}], "category_mode": "near"}, 422, "category_mode"),
            ({"positive": [{"id": one}], "k": 1001}, 422, "k"),
            ({"positive": [{"id": one}], "video_weight": 0, "text_weight": 0}, 422, "video_weight"),
            ({"positive": [{"id": one}], "like": []}, 422, "like"),
            ({"negative": [{"id": one}], "category_mode": "same"}, 422, "category_mode"),
        ]
        for body, status, field in wrong:
            answer = client.post("/v1/recommendations", json=body)
            assert answer.status_code == status, answer.text
            assert answer.json()["errors"][0]["field"] == field
        missing = client.post("/v1/recommendations", json={"positive": [{"id": "nobody"}]})
        assert (missing.status_code, "nobody" in missing.json()["detail"]) == (404, True)
        for query in ({"query": "x", "group_by": "frame"}, {"query": "x", "group_by": "moment", "diversity": 0.5}):
            assert client.post("/v1/search/text", json=query).status_code == 422
        assert client.post("/v1/search/text", json={"query": "x", "category_mode": "same"}).status_code == 422

    def test_pages_are_one_long_answer(self, client: httpx.Client, ready: list[dict[str, Any]]) -> None:
        for parameters in ({}, {"diversity": 0.4}, {"fusion": "zscore", "min_score": -0.5}):
            address = f"/v1/videos/{ready[1]['id']}/recommendations"
            whole = client.get(address, params={**parameters, "k": 1000}).json()["items"]
            paged: list[dict[str, Any]] = []
            cursor: dict[str, str] = {}
            while True:
                page = client.get(address, params={**parameters, "k": 4, **cursor}).json()
                paged += page["items"]
                if page["next_cursor"] is None:
                    break
                cursor = {"cursor": page["next_cursor"]}
            if "diversity" in parameters:  # Candidates are selected again for each page: the same videos, each once.
                assert {hit["video"]["id"] for hit in paged} == {hit["video"]["id"] for hit in whole}
                assert len(paged) == len(whole)
            else:
                assert paged == whole

    def test_a_cursor_whose_question_has_changed_is_gone(self, client: httpx.Client, make_clip: ClipMaker) -> None:
        mine = upload(client, make_clip("mine.mp4", numbered(9)), caption="grey").json()["id"]
        try:
            address = f"/v1/videos/{mine}/recommendations"
            cursor = client.get(address, params={"k": 2}).json()["next_cursor"]
            assert client.get(address, params={"k": 2, "cursor": cursor}).status_code == 200
            client.patch(f"/v1/videos/{mine}", json={"caption": "something else"})
            gone = client.get(address, params={"k": 2, "cursor": cursor})
            assert (gone.status_code, gone.json()["title"]) == (410, "Gone")
        finally:
            client.delete(f"/v1/videos/{mine}")

    def test_a_frame_of_a_clip_finds_it(self, client: httpx.Client, ready: list[dict[str, Any]]) -> None:
        for video in ready[:6]:
            frame = client.get(f"/v1/videos/{video['id']}/frames/3").content
            for form in ({}, {"group_by": "moment"}, {"fusion": "cosine"}):
                answer = by_image(client, frame, video_weight="1", text_weight="0", k="3", **form)
                assert names(answer)[0] == video["id"]
            scoped = by_image(client, frame, category=[video["category"], "nobody"], k="50")
            assert {hit["video"]["category"] for hit in scoped.json()["items"]} == {video["category"]}
            hit = by_image(client, frame, group_by="moment", k="1").json()["items"][0]
            assert hit["moment"]["start"] <= hit["moment"]["time"] <= hit["moment"]["end"] <= video["duration"] + 0.01
            assert hit["breakdown"]["text"] == {"similarity": None, "weight": 0, "contribution": 0, "imputed": False}

    def test_pictures_of_every_kind_and_what_is_none(self, client: httpx.Client, make_clip: ClipMaker) -> None:
        pixels = np.asarray(draw_frame(distinct_scenes(12, seed=11)[4], 0.5, 256, 192))
        answers = []
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
            answer = by_image(client, image_file(pixels, kind), k="1")
            answers += names(answer)
        assert len(set(answers)) == 1
        turned = Image.Exif()
        turned[0x0112] = 6  # Orientation 6: display rotated by 90 degrees clockwise.
        straight = by_image(client, image_file(pixels, "JPEG", quality=95), k="3").json()["items"]
        sideways = by_image(client, image_file(np.rot90(pixels), "JPEG", quality=95, exif=turned), k="3").json()[
            "items"
        ]
        assert [hit["video"]["id"] for hit in straight] == [hit["video"]["id"] for hit in sideways]
        for nonsense in (
            b"no picture",
            b"",
            image_file(pixels)[:200],
            make_clip("a.mp4", numbered(3)).read_bytes(),
            b"%PDF-1.7",
        ):
            answer = by_image(client, nonsense)
            assert answer.status_code == 415, answer.text
            assert answer.headers["content-type"] == "application/problem+json"

    def test_a_picture_of_many_pixels_is_refused_before_it_is_unpacked(self, client: httpx.Client) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        for width, height in ((30_000, 30_000), (2_000_000_000, 2_000_000_000)):
            header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
            rows = zlib.compress(bytes(1 << 24), 9)  # A small file that expands to 16 MiB.
            bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
            answer = by_image(client, bomb)
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["field"] == "file"
            assert f"{width:,} x {height:,}" in answer.json()["detail"]

    def test_a_stranger_clip_is_searched_with_and_not_stored(
        self, client: httpx.Client, drawn: Path, tmp_path: Path
    ) -> None:
        clip = sorted(drawn.rglob("*.mp4"))[5]
        stranger = tmp_path / "stranger.mp4"
        stranger.write_bytes(clip.read_bytes() + b"\0")  # Different bytes, the same frames.
        before = client.get("/v1/info").json()["videos"]
        for form in (
            {},
            {"caption": "words of its own", "num_frames": "3"},
            {"frame_interval": "2"},
            {"group_by": "moment"},
        ):
            with stranger.open("rb") as file:
                answer = client.post(
                    "/v1/search/video",
                    files={"file": file},
                    data={**form, "k": "2", "video_weight": "1", "text_weight": "0.1"},
                )
            assert answer.status_code == 200, answer.text
            assert answer.json()["items"][0]["video"]["title"] == clip.stem
            assert answer.json()["weights"]["text"] == (0.1 if "caption" in form else 0)
        assert client.get("/v1/info").json()["videos"] == before
        for data, form, status in ((b"no clip", {}, 415), (clip.read_bytes(), {"k": "0"}, 422), (b"", {}, 415)):
            answer = client.post("/v1/search/video", files={"file": ("x.mp4", data)}, data=form)
            assert answer.status_code == status, answer.text
        wrong = client.post("/v1/search/video", files={"file": ("x.mp4", b"x")}, data={"title": "x"})
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "title")

    def test_copies_are_found_over_rest(self, client: httpx.Client, make_clip: ClipMaker) -> None:
        rng = np.random.default_rng(4)
        scene = distinct_scenes(40, seed=21)[17]
        frames = [np.asarray(draw_frame(scene, n / 20, 160, 120)) for n in range(20)]
        small = [np.asarray(Image.fromarray(frame).resize((80, 60))) for frame in frames]
        other = [np.asarray(quarters(160, 120)) + rng.integers(0, 9, (120, 160, 3), dtype=np.uint8) for _ in range(5)]
        ids = [
            upload(client, make_clip(f"{name}.mp4", pixels)).json()["id"]
            for name, pixels in {"first": frames, "small": small, "other": other}.items()
        ]
        try:
            for one, two in ((0, 1), (1, 0)):
                answer = client.get(f"/v1/videos/{ids[one]}/duplicates")
                assert names(answer) == [ids[two]]
                assert 0.85 < answer.json()["items"][0]["similarity"] <= 1
                keep = answer.json()["keep"]
                assert (keep["video"]["id"], keep["because"]) == (ids[0], "more pixels")
            lonely = client.get(f"/v1/videos/{ids[2]}/duplicates")
            assert (names(lonely), lonely.json()["keep"]) == ([], None)
            assert client.get("/v1/videos/nobody/duplicates").status_code == 404
        finally:
            for name in ids:
                client.delete(f"/v1/videos/{name}")

    def test_a_score_is_explained(self, client: httpx.Client) -> None:
        words = client.get("/v1/info").json()["score"]
        for needed in ("not a probability", "z-scores", "not comparable"):
            assert needed in words
