"""Tests of the towers compiled by OpenVINO against those of torch, for a vision transformer of random weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.embedding import openvino_towers
from service.embedding.encoder import Encoder
from service.embedding.loading import load
from service.errors import ConfigurationError
from tests.support.checkpoints import small_vit
from tests.support.processes import CHILD_ENVIRONMENT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint as a value of REELSRS_MODEL."""
    return small_vit(tmp_path_factory.mktemp("vit"), seed=0)


@pytest.fixture(scope="module")
def torchs(checkpoint: str) -> Encoder:
    """Return the float32 model that torch runs."""
    return load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that caches compiled towers."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def quantised(checkpoint: str, kept: Path) -> Encoder:
    """Return the same model in 8 bits."""
    return load(checkpoint, precision="int8", cache_dir=kept)


@pytest.fixture
def cosines(torchs: Encoder) -> Callable[[Encoder], np.ndarray]:
    """Return a function that gives the cosines between another model's vectors and torch's.

    Its images and captions were not used to calibrate either model.
    """
    captions = ["a dog on a beach", "fireworks over a lake at night #nofilter " * 20, "x", ""]

    def compare(other: Encoder) -> np.ndarray:
        images = torchs.examples()[0][-openvino_towers.HELD_OUT_COUNT :, ::-1, ::-1]
        seen = torchs.embed_images(images) * other.embed_images(images)
        read = torchs.embed_texts(captions) * other.embed_texts(captions)
        return np.concatenate([seen, read]).sum(axis=1)

    return compare


def test_eight_bits_are_near_and_another_generation(
    quantised: Encoder, torchs: Encoder, cosines: Callable[[Encoder], np.ndarray]
) -> None:
    assert cosines(quantised).min() >= 0.99
    assert (quantised.device, quantised.generation.precision) == ("openvino", "int8")
    assert quantised.generation.id != torchs.generation.id
    assert quantised.generation.dimension == torchs.generation.dimension


def test_single_precision_is_the_same_generation(
    checkpoint: str, torchs: Encoder, cosines: Callable[[Encoder], np.ndarray]
) -> None:
    other = load(checkpoint, device="openvino")
    assert cosines(other).min() >= 0.99999
    assert other.generation == torchs.generation


def test_any_number_at_a_time(quantised: Encoder) -> None:
    images = np.concatenate([quantised.examples()[0]] * 2)
    together = quantised.embed_images(images)
    alone = np.concatenate([quantised.embed_images(images[n : n + 1]) for n in range(3)])
    np.testing.assert_allclose(together[:3], alone, atol=1e-3)
    assert len(together) == len(images)


def test_a_tower_is_made_once_and_anew_where_it_is_damaged(checkpoint: str, kept: Path, quantised: Encoder) -> None:
    folder = kept / quantised.generation.id
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".lock"}
    assert set(before) == {f"{name}.{end}" for name in ("picture", "text") for end in ("xml", "bin", "json")}
    again = load(checkpoint, precision="int8", cache_dir=kept, image_tower=False)
    assert not again.has_image_tower
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".lock"} == before
    data = bytearray((folder / "text.bin").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "text.bin").write_bytes(data)
    mended = load(checkpoint, precision="int8", cache_dir=kept, image_tower=False)
    np.testing.assert_allclose(mended.embed_texts(["a cat"]), quantised.embed_texts(["a cat"]), atol=1e-3)
    assert (folder / "text.bin").stat().st_mtime_ns != before["text.bin"]
    assert (folder / "picture.bin").stat().st_mtime_ns == before["picture.bin"]


def test_towers_of_other_weights_are_refused(checkpoint: str, kept: Path, quantised: Encoder, tmp_path: Path) -> None:
    """The files match their checksums but hold other weights, as after a restore to the wrong folder."""
    (tmp_path / "other").mkdir()
    other = load(
        small_vit(tmp_path / "other", seed=1), precision="int8", cache_dir=tmp_path / "models", image_tower=False
    )
    mixed = tmp_path / "mixed" / quantised.generation.id
    shutil.copytree(tmp_path / "models" / other.generation.id, mixed)
    with pytest.raises(
        ConfigurationError, match=r"REELSRS_PRECISION=int8 computes wrong vectors.*REELSRS_PRECISION=float32"
    ):
        load(checkpoint, precision="int8", cache_dir=tmp_path / "mixed", image_tower=False)


def test_a_model_that_eight_bits_are_too_few_for_is_refused() -> None:
    """The small model is a convolutional network with few parameters."""
    with pytest.raises(ConfigurationError, match="REELSRS_PRECISION=int8 computes wrong vectors"):
        load("tiny", precision="int8")


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("cuda", "int8", "int8 runs only on the CPU, not on cuda"),
        ("openvino", "bfloat16", "must be float32 or int8 with OpenVINO, not bfloat16"),
    ],
)
def test_what_does_not_go_together_is_refused(device: str, precision: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load("tiny", device=device, precision=precision)


def test_without_openvino_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ConfigurationError, match=r'pip install "reelsrs\[openvino\]"'):
        load("tiny", precision="int8")


def test_nothing_is_reported_to_the_maker_of_openvino(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np, torch; from service.embedding import openvino_towers; "
        "openvino_towers.require_without_telemetry(); "
        "inputs = np.random.default_rng(0).random((12, 4), dtype=np.float32); "
        "traced = lambda: torch.jit.trace(torch.nn.Linear(4, 2).eval(), torch.from_numpy(inputs)); "
        "run = openvino_towers.tower(traced, inputs, int8=True, cache_dir=None, name='x'); "
        "assert run(inputs).shape == (12, 2); print(sys.modules['openvino_telemetry'])"
    )
    environment = {**CHILD_ENVIRONMENT, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("None"), "the package that sends is not there"
    assert not (tmp_path / "intel").exists(), "the number that it would know this machine by"


def test_the_pictures_it_is_fitted_to_name_their_source_and_licence() -> None:
    images, captions, _ = openvino_towers.calibration()
    table = (Path(openvino_towers.__file__).parent / "calibration" / "pictures.tsv").read_text().splitlines()[1:]
    assert len(images) == len(captions) == len(table) == 40
    for line in table:
        _, caption, source, licence = line.split("\t")
        assert caption
        assert source
        assert licence.split("-")[0] in ("MIT", "Apache", "CC0")
