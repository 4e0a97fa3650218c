"""Tests of `reelsrs evaluate` on a real library: figures, generations side by side, own queries, copies, the report."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from service.bootstrap import Runtime
from service.database import db, generation_rows, vector_rows, video_rows
from service.embedding.encoder import Encoder
from service.errors import InvalidInput, NotFound
from service.generations import generations
from service.media import Decoder
from service.models import Video
from service.operations.evaluation.queries import read_judgements
from service.worker.worker import Worker
from tests.support.cli import run
from tests.support.library import PreparedLibrary, settings_for
from tests.support.oracle import Item, score
from tests.support.server import serving_here

HOSTILE = "</style><img src=x onerror=alert(1)> $\\frac{"


@pytest.fixture
def library(
    tmp_path: Path, prepared: PreparedLibrary, drawn: Path, tiny: Encoder, decoder: Decoder
) -> Iterator[Runtime]:
    """Yield a library of twelve drawn clips in the folder `data`; eight have captions."""
    data = prepared.copied(tmp_path / "data", drawn, tiny, decoder)
    opened = Runtime(settings_for(data), model=tiny, decoder=decoder)
    yield opened
    opened.close()


def _evaluate(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run("evaluate", "--json", *arguments, cwd=folder, REELSRS_MODEL="tiny")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _values(figures: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    return {(one["measure"], one["ranking"], one["name"]): one["value"] for one in figures}


def _items(library: Runtime) -> tuple[list[Video], list[Item]]:
    with library.db.read() as connection:
        generation = generation_rows.active_generation(connection)
        assert generation is not None
        videos = sorted(video_rows.list_videos(connection, status="ready", limit=100), key=lambda video: video.pk)
        items = []
        for video in videos:
            vectors = vector_rows.vectors_by_kind(connection, video.pk, generation, "mean", "text", "frame")
            text = vectors["text"][0] if "text" in vectors else None
            frames = list(zip(video.frame_times, vectors["frame"], strict=True))
            items.append(Item(video.id, vectors["mean"][0], text, video.category, frames))
    return videos, items


def _second_generation(library: Runtime, tiny: Encoder, videos: list[Video]) -> str:
    """Embed the library with another precision, without the vectors of these videos; return the generation's id."""
    state, _ = library.request_model("tiny", "bfloat16", activate=False)
    library.reembedding(state.generation).run(threading.Event(), keep_up=False)
    with library.db.write() as connection:
        pks = [video.pk for video in videos]
        connection.execute(
            sa.delete(db.embeddings).where(
                db.embeddings.c.generation == state.generation.id, db.embeddings.c.video_key.in_(pks)
            )
        )
    return state.generation.id


def test_figures_equal_a_separate_computation_from_the_database(library: Runtime, tmp_path: Path) -> None:
    found = _evaluate(tmp_path)
    _, items = _items(library)
    captioned = [item for item in items if item.t is not None]
    assert (found["videos"], found["ready_videos"], found["captioned_videos"]) == (12, 12, 8)
    values = _values(found["generations"][0]["figures"])
    ranks = []
    for item in captioned:
        assert item.t is not None
        scores = score(items, [(item.t, item.t, 1.0)], 1.0, 0.0)
        ranks.append(sum(value >= scores[item.id] - 1e-6 for value in scores.values()))
    assert values["captions", "visual", "mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=1e-6)
    assert values["captions", "visual", "recall@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]), abs=1e-6)
    shares = []
    for item in items:
        same = {other.id for other in items if other.category == item.category} - {item.id}
        if not same:
            continue
        scores = score(items, [(item.v, item.t, 1.0)], 0.7, 0.3)
        best = sorted((other for other in items if other is not item), key=lambda other: -scores[other.id])
        shares.append(sum(other.id in same for other in best[:5]) / 5)
    assert values["categories", "fused", "precision@5"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0 < values["moments", "visual", "mrr"] <= 1
    points = found["generations"][0]["curves"]
    assert {(one["curve"], one["aggregation"]) for one in points} == {
        (curve, aggregation) for curve in ("weights", "frames") for aggregation in ("mean", "max")
    }
    assert all(one["low"] <= one["value"] <= one["high"] for one in points)


def test_generations_are_compared_on_the_videos_of_both(library: Runtime, tmp_path: Path, tiny: Encoder) -> None:
    videos, _ = _items(library)
    other = _second_generation(library, tiny, videos[:3])
    active = library.generation().id
    found = _evaluate(tmp_path, "--generation", active, "--generation", other)
    assert (found["videos"], found["ready_videos"]) == (9, 12)
    first, second = (_values(one["figures"]) for one in found["generations"])
    (difference,) = found["differences"]
    assert (difference["generation"], difference["minus"]) == (other, active)
    differences = _values(difference["figures"])
    assert differences == pytest.approx({name: second[name] - first[name] for name in first}, abs=2e-6)
    assert {one["verdict"] for one in difference["figures"]} <= {"better", "worse", "no clear difference"}
    alone = _evaluate(tmp_path, "--generation", other)
    assert alone["videos"] == 9
    assert _values(alone["generations"][0]["figures"]) == pytest.approx(second)
    shown = run("evaluate", "--generation", active, "--generation", other, cwd=tmp_path, REELSRS_MODEL="tiny")
    assert shown.returncode == 0
    assert "tiny bfloat16 minus the first" in shown.stdout
    assert "9 of 12 videos" in shown.stderr


def test_unknown_generations_and_those_without_videos_are_refused(
    library: Runtime, tmp_path: Path, tiny: Encoder
) -> None:
    unknown = run("evaluate", "--generation", "g0", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert (unknown.returncode, unknown.stderr) == (1, "reelsrs: generation 'g0' does not exist\n")
    videos, _ = _items(library)
    other = _second_generation(library, tiny, videos)
    empty = run("evaluate", "--generation", other, cwd=tmp_path, REELSRS_MODEL="tiny")
    assert empty.returncode == 2
    assert f"no video has vectors of {other} yet" in " ".join(empty.stderr.split())


def test_an_incomplete_generation_is_compared_over_rest(library: Runtime, tiny: Encoder, decoder: Decoder) -> None:
    videos, _ = _items(library)
    other = _second_generation(library, tiny, videos[:3])
    active = library.generation()
    with library.db.write() as connection:  # stopped, so that the service's worker does not complete it
        generations.set_target(connection, active, activate=False)
    with serving_here(library.settings, tiny, decoder) as service, service.client() as client:
        found = client.get(f"/v1/generations/{other}/evaluation").json()
        assert [one["id"] for one in found["generations"]] == [active.id, other]
        assert (found["videos"], found["ready_videos"]) == (9, 12)
        with library.db.write() as connection:
            connection.execute(sa.delete(db.embeddings).where(db.embeddings.c.generation == other))
        refused = client.get(f"/v1/generations/{other}/evaluation")
        assert refused.status_code == 409
        assert f"generation {other} is empty: try again when it has vectors" in refused.json()["detail"]


def test_a_file_name_of_several_videos_is_refused(library: Runtime, tmp_path: Path) -> None:
    first, second = _items(library)[0][:2]
    with library.db.write() as connection:
        video_rows.update_video(connection, second.pk, filename=first.filename)
    line = json.dumps({"query": "a", "relevant": [first.filename]})
    (tmp_path / "queries.jsonl").write_text(line, encoding="utf-8")
    done = run("evaluate", "--queries", "queries.jsonl", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert done.returncode == 2
    assert "line 1: 'clip" in done.stderr
    assert "2 videos have this name; give the id or CATEGORY/FILE" in " ".join(done.stderr.split())


def test_own_queries_are_measured(library: Runtime, tmp_path: Path) -> None:
    videos, items = _items(library)
    embed = library.serving.query_encoder.text
    asked = [
        ("a red circle", [videos[0].id, videos[4].id]),
        ("the sea", [videos[7].filename]),
        ("stars at night", [f"{videos[2].category}/{videos[2].filename}", videos[9].id, videos[3].id]),
    ]
    lines = [json.dumps({"query": query, "relevant": relevant}) for query, relevant in asked]
    (tmp_path / "queries.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    values = _values(_evaluate(tmp_path, "--queries", "queries.jsonl")["generations"][0]["figures"])
    expected = {"recall@5": [], "mrr": [], "ndcg@10": []}  # type: dict[str, list[float]]
    wanted = [{videos[0].id, videos[4].id}, {videos[7].id}, {videos[2].id, videos[9].id, videos[3].id}]
    for (query, _), relevant in zip(asked, wanted, strict=True):
        vector = embed(query).visual
        scores = score(items, [(vector, vector, 1.0)], 0.7, 0.3, fusion="zscore")
        order = sorted(scores, key=lambda name: -scores[name])
        hits = [place for place, name in enumerate(order, 1) if name in relevant]
        ideal = sum(1 / np.log2(place + 1) for place in range(1, len(relevant) + 1))
        expected["recall@5"].append(sum(place <= 5 for place in hits) / len(relevant))
        expected["mrr"].append(1 / hits[0])
        expected["ndcg@10"].append(sum(1 / np.log2(place + 1) for place in hits if place <= 10) / ideal)
    for name, numbers in expected.items():
        assert values["queries", "fused", name] == pytest.approx(np.mean(numbers), abs=1e-6), name


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "line 2: is not JSON"),
        ('["a"]', "line 2: must have exactly the fields `query` and `relevant`"),
        ('{"query": "a", "relevant": ["b"], "grade": 1}', "line 2: must have exactly the fields"),
        ('{"query": " ", "relevant": ["b"]}', "line 2: `query` must be a text that is not empty"),
        ('{"query": "a", "relevant": []}', "line 2: `relevant` must be a list of at least one"),
        ('{"query": "a", "relevant": [1]}', "line 2: `relevant` must be a list of at least one"),
        ('{"query": "a", "relevant": ["none.mp4"]}', "line 2: 'none.mp4': the library has no video"),
    ],
)
def test_a_bad_line_is_named(library: Runtime, tmp_path: Path, line: str, error: str) -> None:
    videos, _ = _items(library)
    good = json.dumps({"query": "a", "relevant": [videos[0].id]})
    (tmp_path / "queries.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    done = run("evaluate", "--queries", "queries.jsonl", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert done.returncode == 2
    assert f"queries: queries.jsonl, {error}" in " ".join(done.stderr.split())


def test_files_of_queries_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.jsonl cannot be read: No such file"):
        read_judgements(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"empty\.jsonl must have from 1 to 10,000 queries, not 0"):
        read_judgements(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="is not UTF-8 text"):
        read_judgements(tmp_path / "binary.jsonl")


class _Page(HTMLParser):
    """Collects the tags, pictures and text of a page, and checks that its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.pictures: list[str] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "img", "br"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report_needs_no_other_file_and_has_pictures(library: Runtime, tmp_path: Path) -> None:
    first, second = [video for video in _items(library)[0] if video.caption][:2]
    # The caption of another clip, so that it finds its own clip badly.
    library.ingest.edit(first.id, {"title": HOSTILE, "category": "_<b>$x", "caption": f"{second.caption} {HOSTILE}"})
    Worker(library).run_until_idle()
    done = run("evaluate", "--report", "new/report.html", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert "script" not in page.tags
    assert "<img src=x" not in text
    assert re.search(r'(?:src|href)="(?!data:|#)', text) is None
    assert "prefers-color-scheme: dark" in text
    assert page.pictures
    for picture in page.pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,")))) as image:
            assert max(image.size) <= 240
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 1
    ElementTree.fromstring(drawings[0])
    assert "#010203" not in drawings[0]
    assert "currentColor" in drawings[0]
    for words in ("Captions", "Categories", "Moments", "Curves of tiny", "Worst captions of tiny", "own clip: rank"):
        assert words in page.words
    figures = _values(_evaluate(tmp_path)["generations"][0]["figures"])
    assert f"{figures['captions', 'visual', 'mrr']:.3f} [" in page.words
    wrong = run("evaluate", "--report", "report.pdf", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert (wrong.returncode, wrong.stderr) == (2, "reelsrs: report: must end in .html, not .pdf\n")


def test_copies_are_recognised(library: Runtime, tmp_path: Path) -> None:
    before = sorted(path.name for path in (tmp_path / "data" / "media").rglob("*"))
    found = _evaluate(tmp_path, "--copies")["generations"][0]["figures"]
    copies = {one["name"]: one for one in found if one["measure"] == "copies"}
    assert set(copies) == {"found", "no wrong hit"}
    assert copies["found"]["queries"] == 10
    assert copies["found"]["value"] >= 0.8
    assert copies["no wrong hit"]["value"] >= 0.9
    assert len(_items(library)[0]) == 12, "the copies are in another library"
    assert sorted(path.name for path in (tmp_path / "data" / "media").rglob("*")) == before


def test_an_empty_library_is_refused(tmp_path: Path) -> None:
    done = run("evaluate", cwd=tmp_path, REELSRS_MODEL="tiny")
    assert done.returncode == 1
    assert "is empty" in done.stderr


def test_a_library_without_captions_and_categories_has_the_figures_that_it_can(
    library: Runtime, tmp_path: Path
) -> None:
    videos, _ = _items(library)
    for video in videos:
        library.ingest.edit(video.id, {"caption": None, "category": None})
    found = _evaluate(tmp_path, "--report", "report.html")
    assert {one["measure"] for one in found["generations"][0]["figures"]} == {"moments"}
    assert found["generations"][0]["curves"] == []
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.pictures == []
    with pytest.raises(NotFound), library.db.read() as connection:
        generations.state(connection, "g0")
