"""Tests of the command line: exit statuses and output streams; each status is also tested in a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import __version__
from service.media.synthetic.drawing import draw_frame
from service.media.synthetic.scenes import distinct_scenes
from tests.support.cli import reelsrs, run


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Path:
    """Return a folder in which `reelsrs embed` has run with the small model."""
    folder = tmp_path_factory.mktemp("cli")
    done = run("embed", "--data-folder", str(drawn), "--json", cwd=folder, REELSRS_MODEL="tiny")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 12
    return folder


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys, typer.testing, service.cli\n"
        "result = typer.testing.CliRunner().invoke(service.cli.app, ['--help'])\n"
        "heavy = {'torch', 'open_clip', 'av', 'faiss', 'fastapi', 'sqlalchemy', 'numpy', 'umap', 'plotly', 'PIL'}\n"
        "print(result.exit_code, 'embed' in result.output, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 True []"


def test_version_and_usage(tmp_path: Path) -> None:
    for way in (run, reelsrs):  # a real process also returns 0 and 2
        assert way("--version", cwd=tmp_path).stdout.strip() == f"reelsrs {__version__}"
        assert way("nonsense", cwd=tmp_path).returncode == 2
    assert run("similar", "x", "--k", "0", cwd=tmp_path).returncode == 2
    assert run("similar", "x", "--video-weight", "0", "--text-weight", "0", cwd=tmp_path).returncode == 2


def test_an_empty_library_is_said(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"whatever")
    for arguments in (("similar", "x"), ("similar", "clip.mp4"), ("search", "x"), ("export", "out"), ("visualize",)):
        done = run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert "is empty" in done.stderr


def test_wrong_settings_and_missing_weights_are_sentences(tmp_path: Path) -> None:
    for way in (run, reelsrs):
        done = way("config", cwd=tmp_path, REELSRS_PORT="high")
        assert done.returncode == 1
        assert "REELSRS_PORT" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_second_run_embeds_nothing(embedded: Path, drawn: Path) -> None:
    done = run("embed", "--data_folder", str(drawn), cwd=embedded, REELSRS_MODEL="tiny")
    assert done.returncode == 0
    assert done.stdout.strip() == "0 embedded, 0 updated, 12 unchanged, 0 duplicates, 0 failed, 0 skipped"


def test_similar_by_path_by_id_and_for_a_stranger(embedded: Path, drawn: Path, tmp_path: Path) -> None:
    clips = sorted(drawn.rglob("*.mp4"))
    by_path = run("similar", str(clips[1]), "--k", "5", "--json", cwd=embedded)
    assert by_path.returncode == 0, by_path.stderr
    answer = json.loads(by_path.stdout)
    assert [hit["rank"] for hit in answer["items"]] == [1, 2, 3, 4, 5]
    first = answer["items"][0]["video"]["id"]
    by_id = json.loads(run("similar", first, "--k", "11", "--json", cwd=embedded).stdout)
    assert len(by_id["items"]) == 11
    stranger = tmp_path / "renamed.mp4"
    stranger.write_bytes(clips[1].read_bytes() + b"\0")  # other bytes, same frames
    found = json.loads(
        run(
            "similar", str(stranger), "--k", "1", "--video-weight", "1", "--text-weight", "0", "--json", cwd=embedded
        ).stdout
    )
    assert found["items"][0]["video"]["title"] == clips[1].stem
    assert found["items"][0]["score"] == pytest.approx(1, abs=1e-4)
    table = run("similar", first, "--k", "2", cwd=embedded)
    assert table.stdout.splitlines()[0].split() == [
        "rank",
        "score",
        "visual",
        "text",
        "seconds",
        "category",
        "title",
        "caption",
        "id",
    ]
    assert len(table.stdout.splitlines()) == 3
    missing = run("similar", "no-such-thing", cwd=embedded)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "neither a file nor the id" in missing.stderr


def test_search_uses_the_librarys_own_model(embedded: Path) -> None:
    done = run("search", "a red circle", "--k", "3", "--json", cwd=embedded)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (len(answer["items"]), answer["fusion"]) == (3, "zscore")
    elsewhere = {"REELSRS_DATA_DIR": "elsewhere", "REELSRS_DATABASE_URL": f"sqlite:///{embedded}/data/reelsrs.db"}
    assert run("search", "x", cwd=embedded, **elsewhere).returncode == 0
    other = run("search", "x", cwd=embedded, REELSRS_MODEL="tiny", REELSRS_PRECISION="bfloat16")
    assert other.returncode == 0
    assert "searched with tiny in float32" in other.stderr
    assert "searched with" not in done.stderr


def test_search_by_pictures_clips_and_examples(embedded: Path, drawn: Path, tmp_path: Path) -> None:
    scene = distinct_scenes(12, seed=11)[7]
    clip = next(iter(drawn.rglob("clip07.mp4")))
    picture = tmp_path / "seven.png"
    draw_frame(scene, 0.5, 256, 256).save(picture)
    stranger = tmp_path / "stranger.mp4"
    stranger.write_bytes(clip.read_bytes() + b"\0")
    only_seen = ("--video-weight", "1", "--text-weight", "0", "--json", "--k", "12")

    def hits(*arguments: str) -> list[dict[str, Any]]:
        done = run("search", *arguments, cwd=embedded)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["items"]  # type: ignore[no-any-return]

    found = hits("--image", str(picture), *only_seen)
    assert found[0]["video"]["title"] == "clip07"
    ids = {hit["video"]["title"]: hit["video"]["id"] for hit in found}
    moment = hits("--image", str(picture), "--moments", *only_seen)[0]
    assert moment["video"]["title"] == "clip07"
    assert 0 <= moment["moment"]["start"] <= moment["moment"]["time"] <= moment["moment"]["end"]
    assert hits("--video", str(stranger), *only_seen)[0]["video"]["title"] == "clip07"
    mixed = hits("a circle", "--like", ids["clip07"], "--unlike", ids["clip01"], "--diversity", "0.3", *only_seen)
    assert {"clip07", "clip01"}.isdisjoint(hit["video"]["title"] for hit in mixed)
    scoped = hits("--like", ids["clip07"], "--category", clip.parent.name, *only_seen)
    assert {hit["video"]["category"] for hit in scoped} <= {clip.parent.name}
    table = run("search", "--image", str(picture), "--moments", cwd=embedded).stdout.splitlines()
    assert "seconds" in table[0]
    assert "-" in table[1].split()[4]
    for wrong in ((), ("--image", "nowhere.png"), ("x", "--diversity", "2"), ("--image", str(clip))):
        done = run("search", *wrong, cwd=embedded)
        assert (done.returncode, done.stdout) == (1 if str(clip) in wrong else 2, "")


def test_duplicates_are_listed_as_groups(tmp_path: Path, drawn: Path) -> None:
    folder = tmp_path / "Data" / "mixed"
    folder.mkdir(parents=True)
    clips = sorted(drawn.rglob("*.mp4"))
    for number, clip in enumerate(clips[:3]):
        (folder / f"clip{number}.mp4").write_bytes(clip.read_bytes())
    (folder / "again.mp4").write_bytes(clips[1].read_bytes() + b"\0")
    assert run("embed", cwd=tmp_path, REELSRS_MODEL="tiny").returncode == 0
    done = run("duplicates", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (group,) = json.loads(done.stdout)["items"]
    (copy,) = group["copies"]
    assert {group["best"]["title"], copy["video"]["title"]} == {"clip1", "again"}
    assert copy["similarity"] == pytest.approx(1, abs=1e-3)
    assert (group["keep"]["video"], group["keep"]["because"]) == (group["best"], "older")
    lines = run("duplicates", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["similarity", "keep", "1.000"]
    assert lines[1].split()[2] == "older"


def test_export_writes_every_vector(embedded: Path, tmp_path: Path) -> None:
    done = run("export", str(tmp_path / "out"), cwd=embedded)
    assert (done.returncode, done.stdout.strip()) == (0, f"12 videos exported to {tmp_path / 'out'}")
    folders = [path.parent for path in (tmp_path / "out").rglob("metadata.json")]
    assert len(folders) == 12
    for folder in folders:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        assert folder.parent.name == metadata["category"]
        frames = np.load(folder / "frame.npy")
        assert frames.shape == (len(metadata["frame_times"]), metadata["generation"]["dimension"])
        mean = frames.mean(axis=0)
        np.testing.assert_allclose(np.load(folder / "aggregated.npy"), mean / np.linalg.norm(mean), atol=1e-5)
        assert (folder / "text.npy").exists() == (metadata["caption"] is not None)
    assert run("export", str(folders[0] / "metadata.json"), cwd=embedded).returncode == 2


def test_a_map_is_kept_and_grows(tmp_path: Path, drawn: Path) -> None:
    clips = sorted(drawn.rglob("*.mp4"))
    for number, clip in enumerate(clips):
        target = tmp_path / ("Data" if number < 9 else "Later") / "clips" / f"{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(clip.read_bytes())
    environment = {"REELSRS_MODEL": "tiny"}
    assert run("embed", cwd=tmp_path, **environment).returncode == 0
    first = run("visualize", "--method", "tsne", "--perplexity", "4", cwd=tmp_path, **environment)
    assert (first.returncode, first.stdout) == (0, "9 points in embeddings.html\n"), first.stderr
    assert (tmp_path / "embeddings.html").stat().st_size > 1_000_000
    assert run("embed", "--data-folder", "Later", cwd=tmp_path, **environment).returncode == 0
    again = run("visualize", "--method", "tsne", "--perplexity", "4", "--output", "a.svg", cwd=tmp_path, **environment)
    assert (again.stdout, "3 of them were placed" in again.stderr) == ("12 points in a.svg\n", True)
    table = run("export", "--parquet", "a.parquet", "--method", "pca", cwd=tmp_path, **environment)
    assert (table.returncode, table.stdout) == (0, "12 videos exported to a.parquet\n"), table.stderr
    for wrong in (
        ("visualize", "--method", "tsne", "--perplexity", "1"),
        ("visualize", "--method", "pca", "--min-dist", "0.5"),
        ("visualize", "--output", "a.pdf"),
        ("export",),
        ("export", "out", "--parquet", "a.parquet"),
    ):
        done = run(*wrong, cwd=tmp_path, **environment)
        assert (done.returncode, done.stdout) == (2, ""), wrong


def test_config_and_schema(tmp_path: Path) -> None:
    done = run("config", "--json", cwd=tmp_path, REELSRS_API_KEYS="secret")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["REELSRS_API_KEYS"]["value"] == "********"
    assert rows["REELSRS_DATA_DIR"]["source"] == "default"
    assert "secret" not in run("config", cwd=tmp_path, REELSRS_API_KEYS="secret").stdout
    assert run("db", "upgrade", cwd=tmp_path).returncode == 0
    assert (tmp_path / "data" / "reelsrs.db").exists()


def test_a_bad_file_gives_status_3_and_its_name(tmp_path: Path, drawn: Path) -> None:
    folder = tmp_path / "Data" / "cats"
    folder.mkdir(parents=True)
    (folder / "good.mp4").write_bytes(next(iter(sorted(drawn.rglob("*.mp4")))).read_bytes())
    (folder / "bad.mp4").write_bytes(b"bad")
    done = reelsrs("embed", cwd=tmp_path, REELSRS_MODEL="tiny")  # a real process, to test its exit status
    assert (done.returncode, done.stdout.strip()) == (
        3,
        "1 embedded, 0 updated, 0 unchanged, 0 duplicates, 1 failed, 0 skipped",
    )
    assert "bad.mp4: the file is not a video" in done.stderr
    assert run("embed", "--data-folder", "nowhere", cwd=tmp_path, REELSRS_MODEL="tiny").returncode == 2


def test_demo_makes_a_library(tmp_path: Path) -> None:
    done = run("demo", "--no-serve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "48 clips" in done.stdout
    clip = sorted((tmp_path / "reelsrs-demo" / "Data").rglob("*.mp4"))[0]
    found = run("similar", str(clip), "--json", cwd=tmp_path, REELSRS_DATA_DIR="reelsrs-demo/data")
    assert len(json.loads(found.stdout)["items"]) == 10
