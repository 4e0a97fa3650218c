"""Tests that the REST service must pass with every database, vector store and object store."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support import services
from tests.support.clips import ClipMaker, numbered
from tests.support.rest import check_recommendations, items, upload
from tests.support.server import Service


def _events(client: httpx.Client, video_id: str) -> Any:
    with client.stream("GET", f"/v1/videos/{video_id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


class RestProperties:
    """REST tests. A subclass gives a fixture `service` with the twelve drawn clips, which tests do not change."""

    @pytest.fixture
    def mine(self, client: httpx.Client, make_clip: ClipMaker) -> Any:
        """Yield a function that uploads a clip for this test. The clips are deleted afterwards."""
        made = []

        def send(count: int = 9, **form: str) -> dict[str, Any]:
            answer = upload(client, make_clip(f"own{len(made)}.mp4", numbered(count)), **form)
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["id"])
            return answer.json()  # type: ignore[no-any-return]

        yield send
        for name in made:
            client.delete(f"/v1/videos/{name}")

    def test_welcome_for_programs_and_for_browsers(self, client: httpx.Client) -> None:
        answer = client.get("/")
        assert answer.json()["links"]["docs"] == "/docs"
        browser = client.get("/", headers={"Accept": "text/html,*/*"})
        assert (browser.status_code, browser.headers["location"]) == (307, "/explore")
        assert "ReelsRS" in client.get("/explore").text

    def test_health_info_categories_metrics(self, client: httpx.Client) -> None:
        assert client.get("/livez").json()["status"] == "ok"
        assert client.get("/readyz").json()["checks"] == dict.fromkeys(
            ("database", "index", "load", "model", "storage", "worker", "writing"), "ok"
        )
        info = client.get("/v1/info").json()
        assert (info["model"], info["index"]["exact"], info["limits"]["max_k"]) == ("tiny", True, 1000)
        assert info["index"]["size"] == info["videos"]["ready"]
        counts = client.get("/v1/categories").json()["items"]
        assert sum(category["count"] for category in counts) == sum(info["videos"].values())
        metrics = client.get("/metrics").text
        assert f'reelsrs_videos{{status="ready"}} {float(info["videos"]["ready"])}' in metrics
        assert 'reelsrs_http_requests_total{method="GET",route="/v1/info",status="200"}' in metrics

    def test_the_docs_page_needs_no_other_host(self, client: httpx.Client) -> None:
        page = client.get("/docs").text
        assert "http://" not in page
        assert "https://" not in page
        for part in page.split('"'):
            if part.startswith("/docs/assets/"):
                assert client.get(part).status_code == 200

    def test_an_upload_is_queued_then_ready_and_its_parts_are_there(
        self, client: httpx.Client, make_clip: ClipMaker
    ) -> None:
        clip = make_clip("holiday film.mp4", numbered(30))
        answer = upload(client, clip, wait=0, caption="  grey #fog ", category="weather", title="Fog", num_frames="3")
        assert answer.status_code == 202
        video = answer.json()
        assert answer.headers["location"] == f"/v1/videos/{video['id']}"
        assert (video["status"], video["progress"], video["thumbnail_url"]) == ("queued", 0.0, None)
        assert (video["title"], video["caption"], video["category"]) == ("Fog", "grey #fog", "weather")
        early = client.get(f"/v1/videos/{video['id']}/recommendations")
        if early.status_code != 200:  # The worker may have been quick.
            assert early.status_code == 409
            assert early.json()["video_status"] in ("queued", "processing")
        events = list(_events(client, video["id"]))
        assert events[-1][0] == "ready"
        assert all(name == "progress" for name, _ in events[:-1])
        ready = events[-1][1]
        assert (ready["progress"], ready["duration"], ready["num_frames"]) == (1.0, 3.0, 3)
        base = f"/v1/videos/{video['id']}"
        frames = client.get(f"{base}/frames").json()["items"]
        assert [frame["time"] for frame in frames] == pytest.approx([0.5, 1.5, 2.5])
        for url in (ready["thumbnail_url"], frames[2]["url"]):
            picture = client.get(url)
            assert picture.headers["content-type"] == "image/jpeg"
            assert Image.open(io.BytesIO(picture.content)).size == (64, 48)
        assert client.get(f"{base}/frames/3").status_code == 404
        assert client.get(f"{base}/frames/-1").status_code == 404
        arrays = np.load(
            io.BytesIO(
                client.get(
                    f"{base}/embeddings", params={"type": "frame"}, headers={"Accept": "application/x-npy"}
                ).content
            )
        )
        assert arrays.dtype == np.float32
        as_json = client.get(f"{base}/embeddings", params={"type": "frame"}).json()
        assert as_json["shape"] == list(arrays.shape) == [3, len(as_json["vectors"][0])]
        np.testing.assert_allclose(np.linalg.norm(arrays, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(as_json["vectors"], arrays, atol=1e-7)
        assert client.delete(base).status_code == 204

    def test_content_with_ranges(
        self, client: httpx.Client, make_clip: ClipMaker, mine: Callable[..., dict[str, Any]]
    ) -> None:
        video = mine(8)
        whole = make_clip("same.mp4", numbered(8)).read_bytes()
        answer = client.get(video["content_url"])
        assert (answer.status_code, answer.content) == (200, whole)
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["x-content-type-options"] == "nosniff"
        part = client.get(video["content_url"], headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
        assert client.get(video["content_url"], headers={"Range": f"bytes={len(whole) + 5}-"}).status_code == 416

    def test_the_same_bytes_are_one_video(self, client: httpx.Client, make_clip: ClipMaker) -> None:
        clip = make_clip("a.mp4", numbered(7))
        first = upload(client, clip)
        second = upload(client, clip, caption="other words")
        assert (first.status_code, second.status_code) == (201, 200)
        assert second.json() == first.json()
        assert client.delete(f"/v1/videos/{first.json()['id']}").status_code == 204

    def test_edits_are_searchable_at_once(self, client: httpx.Client, mine: Callable[..., dict[str, Any]]) -> None:
        video = mine(8, caption="one thing")
        base = f"/v1/videos/{video['id']}"
        edited = client.patch(base, json={"caption": "a purple zebra", "category": "zoo", "title": "Z"})
        assert edited.status_code == 200
        assert edited.json()["caption"] == "a purple zebra"
        found = client.post("/v1/search/text", json={"query": "a purple zebra", "video_weight": 0, "text_weight": 1})
        assert found.json()["items"][0]["video"]["id"] == video["id"]
        only = client.post("/v1/search/text", json={"query": "x", "category": ["zoo"]}).json()["items"]
        assert [hit["video"]["id"] for hit in only] == [video["id"]]
        assert client.patch(base, json={"caption": None}).json()["caption"] is None
        assert client.get(f"{base}/embeddings", params={"type": "text"}).status_code == 404
        assert client.patch(base, json={}).json()["title"] == "Z"

    def test_what_is_deleted_is_gone_everywhere(
        self, service: Service, client: httpx.Client, make_clip: ClipMaker
    ) -> None:
        video = upload(client, make_clip("a.mp4", numbered(6)), caption="soon gone").json()
        neighbour = client.get("/v1/videos", params={"limit": 2}).json()["items"][1]["id"]
        assert f"{video['sha256'][:2]}/{video['sha256']}/video" in services.stored(service.data_dir)
        base = f"/v1/videos/{video['id']}"
        assert client.delete(base).status_code == 204
        for path in (
            "",
            "/content",
            "/thumbnail",
            "/frames",
            "/frames/0",
            "/embeddings",
            "/recommendations",
            "/events",
        ):
            assert client.get(base + path).status_code == 404, path
        assert client.delete(base).status_code == 404
        assert client.patch(base, json={"title": "x"}).status_code == 404
        hits = client.get(f"/v1/videos/{neighbour}/recommendations", params={"k": 1000}).json()["items"]
        assert video["id"] not in [hit["video"]["id"] for hit in hits]
        assert video["sha256"] not in services.clips(service.data_dir)

    def test_pages_hold_while_videos_come_and_go(
        self, client: httpx.Client, mine: Callable[..., dict[str, Any]]
    ) -> None:
        everything = [video["id"] for video in client.get("/v1/videos", params={"limit": 500}).json()["items"]]
        page = client.get("/v1/videos", params={"limit": 5}).json()
        mine(8)
        seen = [video["id"] for video in page["items"]]
        while page["next_cursor"]:
            page = client.get("/v1/videos", params={"limit": 5, "cursor": page["next_cursor"]}).json()
            seen += [video["id"] for video in page["items"]]
        assert seen == everything
        assert client.get("/v1/videos", params={"cursor": "made up"}).status_code == 422
        assert client.get("/v1/videos", params={"status": "ready", "category": "nobody"}).json()["items"] == []

    def test_recommendations_equal_numpy(self, client: httpx.Client) -> None:
        everything = items(client)
        assert any(item.t is None for item in everything)
        check_recommendations(client, everything, [item.id for item in everything])

    def test_categories_filter_recommendations(self, client: httpx.Client) -> None:
        everything = items(client)
        query = everything[0]
        base = f"/v1/videos/{query.id}/recommendations"
        by_id = {item.id: item.category for item in everything}

        def ask(**parameters: Any) -> set[str | None]:
            answer = client.get(base, params={"k": 100, **parameters})
            assert answer.status_code == 200, answer.text
            return {by_id[hit["video"]["id"]] for hit in answer.json()["items"]}

        categories = {item.category for item in everything}
        two = sorted(str(category) for category in categories)[:2]
        assert ask(category=two) <= set(two)
        assert ask(exclude_category=two) == categories - set(two) or query.category not in two
        assert ask(category_mode="same") <= {query.category}
        assert query.category not in ask(category_mode="other")

    def test_text_search_explains_itself(self, client: httpx.Client) -> None:
        answer = client.post("/v1/search/text", json={"query": "a red circle", "k": 3}).json()
        assert (answer["fusion"], answer["exact"], len(answer["items"])) == ("zscore", True, 3)
        assert answer["weights"] == {"video": 0.7, "text": 0.3}
        hit = answer["items"][0]
        assert hit["moment"]["time"] >= 0
        times = client.get(f"/v1/videos/{hit['video']['id']}/frames").json()["items"]
        assert hit["moment"]["time"] == times[hit["moment"]["frame"]]["time"]

    @pytest.mark.parametrize(
        ("parameters", "field"),
        [
            ({"k": 0}, "k"),
            ({"k": 1001}, "k"),
            ({"k": "many"}, "k"),
            ({"video_weight": -1}, "video_weight"),
            ({"text_weight": "nan"}, "text_weight"),
            ({"video_weight": 0, "text_weight": 0}, "video_weight"),
            ({"fusion": "magic"}, "fusion"),
            ({"category_mode": "near"}, "category_mode"),
            ({"weight": 1}, "weight"),
        ],
    )
    def test_wrong_parameters_are_named(self, client: httpx.Client, parameters: dict[str, Any], field: str) -> None:
        name = client.get("/v1/videos", params={"limit": 1}).json()["items"][0]["id"]
        answer = client.get(f"/v1/videos/{name}/recommendations", params=parameters)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        problem = answer.json()
        assert field in [error["field"] for error in problem["errors"]]
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert problem["instance"] == f"/v1/videos/{name}/recommendations"

    @pytest.mark.parametrize("content", [b"", b"words, no video", b"\x00\x00\x00\x18ftypmp42" + b"\0" * 100])
    def test_what_is_no_video_is_415(self, client: httpx.Client, content: bytes) -> None:
        answer = client.post("/v1/videos", files={"file": ("a.mp4", content)})
        assert answer.status_code == 415, answer.text
        assert len(answer.json()["detail"]) > 10

    def test_truncated_clips_are_refused_or_end_well(self, client: httpx.Client, make_clip: ClipMaker) -> None:
        for name in ("a.mp4", "a.mkv"):
            whole = make_clip(name, numbered(40)).read_bytes()
            for part in (0.02, 0.5, 0.9):
                clip = make_clip("cut" + name, numbered(2))
                clip.write_bytes(whole[: int(len(whole) * part)])
                answer = upload(client, clip)
                assert answer.status_code in (201, 202, 415), answer.text
                if answer.status_code != 415:
                    video = answer.json()
                    assert video["status"] == "ready" or (video["status"] == "failed" and video["error"])
                    client.delete(f"/v1/videos/{video['id']}")

    @pytest.mark.parametrize(
        ("form", "field"),
        [
            ({"caption": "x" * 100_000}, "caption"),
            ({"category": "../../etc"}, "category"),
            ({"category": "a/b"}, "category"),
            ({"category": ".."}, "category"),
            ({"title": "x" * 300}, "title"),
            ({"num_frames": "0"}, "num_frames"),
            ({"num_frames": "ten"}, "num_frames"),
            ({"frame_interval": "-1"}, "frame_interval"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_wrong_words_with_an_upload_are_named(
        self, client: httpx.Client, make_clip: ClipMaker, form: dict[str, str], field: str
    ) -> None:
        answer = upload(client, make_clip("a.mp4", numbered(5)), **form)
        assert answer.status_code == 422, answer.text
        assert [error["field"] for error in answer.json()["errors"]] == [field]

    def test_forms_that_are_none(self, client: httpx.Client) -> None:
        for options in (
            {"json": {"file": "x"}},
            {"content": b"raw", "headers": {"Content-Type": "video/mp4"}},
            {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            {"files": {"other": ("a.mp4", b"x")}},
            {"files": {"file": (None, b"x")}},
            {"files": [("file", ("a.mp4", b"x")), ("file", ("b.mp4", b"x"))]},
        ):
            answer = client.post("/v1/videos", **options)  # type: ignore[arg-type]
            assert answer.status_code == 422, (options, answer.text)
            assert answer.json()["errors"]

    def test_file_names_that_climb_stay_names(
        self, service: Service, client: httpx.Client, make_clip: ClipMaker
    ) -> None:
        clip = make_clip("a.mp4", numbered(11))
        outside = sorted(path.name for path in service.data_dir.parent.iterdir())
        answer = client.post(
            "/v1/videos", params={"wait": 60}, files={"file": ("../../../../tmp/evil.mp4", clip.read_bytes())}
        )
        video = answer.json()
        assert (answer.status_code, video["filename"], video["title"]) == (201, "evil.mp4", "evil")
        assert sorted(path.name for path in service.data_dir.parent.iterdir()) == outside
        client.delete(f"/v1/videos/{video['id']}")

    def test_unknown_things_are_404_with_a_problem(self, client: httpx.Client) -> None:
        for path in ("/v1/videos/nobody", "/v1/videos/nobody/content", "/v1/nothing", "/nothing"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert client.put("/v1/videos").status_code == 405
        assert (
            client.patch("/v1/videos/nobody", content=b"{", headers={"Content-Type": "application/json"}).status_code
            == 422
        )

    def test_cors_is_closed_by_default(self, client: httpx.Client) -> None:
        answer = client.get("/v1/videos", headers={"Origin": "https://app.example"})
        assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize(
        "address", ["/v1/videos", "/v1/videos/none", "/v1/search/text", "/docs", "/explore", "/livez"]
    )
    def test_every_answer_tells_a_browser_what_not_to_do(self, client: httpx.Client, address: str) -> None:
        answer = client.get(address)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers.get_list("content-security-policy")
        assert len(policy) == 1
        assert "frame-ancestors 'none'" in policy[0]
        assert ("default-src 'none'" in policy[0]) == (address not in ("/docs", "/explore"))
