"""Tests of the kinds of models that people bring: SigLIP, MobileCLIP, PE-Core and multilingual text towers."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from service.embedding import loading
from service.embedding.encoder import Encoder
from service.embedding.loading import load
from service.errors import ConfigurationError, ModelUnavailable
from service.media import Limits, sample
from service.models import Sampling
from tests.support.checkpoints import FAMILIES, family, small_vit

TEXTS = ["a dog on a beach", "Two RED circles, #art!", "ein Hund, 犬 🐕"]
MULTILINGUAL = ("xlm-roberta", "nllb")


@pytest.fixture(scope="module", params=FAMILIES)
def brought(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Any, Path]:
    """Return the encoder of a folder, the model as open_clip created it, and the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    model = family(folder, request.param)
    return load(f"local-dir:{folder}", device="cpu"), model, folder


def _transform(model: Any) -> Any:
    return open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )


def test_images_are_embedded_as_by_open_clip(brought: tuple[Encoder, Any, Path]) -> None:
    encoder, model, _ = brought
    spec = encoder.image_spec
    pixels = np.random.default_rng(0).integers(0, 255, (3, spec.height, spec.width, 3), np.uint8)
    transform = _transform(model)
    with torch.no_grad():
        theirs = model.encode_image(torch.stack([transform(Image.fromarray(one)) for one in pixels]), normalize=True)
    np.testing.assert_allclose(encoder.embed_images(pixels), theirs.numpy(), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(encoder.embed_images(pixels), axis=1), 1, atol=1e-5)


def test_a_real_frame_is_preprocessed_as_by_open_clip(brought: tuple[Encoder, Any, Path], shared_clips: Path) -> None:
    import av

    encoder, model, _ = brought
    clip = shared_clips / "sports_people" / "football_juggling.mp4"
    with av.open(str(clip)) as container:
        picture = next(container.decode(video=0)).to_image()
    settings = model.visual.preprocess_cfg
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    theirs = ((_transform(model)(picture) * std + mean) * 255).permute(1, 2, 0).numpy()
    mine = sample(clip, Sampling(1, 1), encoder.image_spec, Limits(60, 10**7)).pixels[0].astype(float)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).mean() < 2
    assert np.quantile(np.abs(mine - theirs), 0.99) < 10


def test_texts_are_embedded_as_by_open_clip(brought: tuple[Encoder, Any, Path]) -> None:
    encoder, model, folder = brought
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        theirs = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    mine = encoder.embed_texts(TEXTS)
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert (mine[0] @ mine[1:].T < 1 - 1e-6).all()
    alone = np.concatenate([encoder.embed_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, mine, atol=1e-5)  # padding does not count


@pytest.mark.parametrize(
    "text",
    ["a red circle on a plain background " * 20, "USA, NATO - UNESCO! " * 40, "犬" * 300, "犬 " * 200, "-" * 200, ""],
)
def test_long_texts_fit_the_context(brought: tuple[Encoder, Any, Path], text: str) -> None:
    encoder, _, folder = brought
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert encoder.context_length == config.get("context_length", 77)
    windows = encoder.windows(text)
    assert "".join("".join(part.split()) for part, _ in windows) == "".join(text.split())
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    beyond = tokenizer([part for part, _ in windows], context_length=1000)[:, encoder.context_length :]
    assert (beyond == beyond[0, -1]).all()  # padding
    assert np.linalg.norm(encoder.embed_texts([text])) == pytest.approx(1, abs=1e-5)


def test_the_text_tower_alone_is_the_same_model(brought: tuple[Encoder, Any, Path]) -> None:
    encoder, _, folder = brought
    text_only = load(f"local-dir:{folder}", device="cpu", image_tower=False)
    assert text_only.generation == encoder.generation
    np.testing.assert_allclose(text_only.embed_texts(TEXTS), encoder.embed_texts(TEXTS), atol=1e-6)


def test_branches_are_merged(brought: tuple[Encoder, Any, Path]) -> None:
    encoder, model, folder = brought

    def branches(module: torch.nn.Module) -> int:
        return sum(isinstance(one, torch.nn.BatchNorm2d) for one in module.modules())

    merged = branches(encoder.image_tower.args[0])  # type: ignore[attr-defined]
    assert merged < branches(model) / 4 if folder.name.startswith("mobileclip") else merged == branches(model)


@pytest.mark.parametrize("scale", [{"mean": 0.5, "std": 0.25}, {"mean": [0.1, 0.2, 0.3], "std": None}])
def test_mean_and_deviation_may_be_written_in_each_way_of_open_clip(tmp_path: Path, scale: dict[str, Any]) -> None:
    small_vit(tmp_path, 0)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = scale
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with torch.no_grad():
        theirs = model.eval().encode_image(transform(Image.fromarray(pixels))[None], normalize=True).numpy()
    mine = load(f"local-dir:{tmp_path}", device="cpu").embed_images(pixels[None])
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


# --- folders with a text tower of transformers


def _rename(folder: Path, **names: str) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= names
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fail every look-up of a host, and return the list of hosts that were looked up."""
    asked: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(loading, "getproxies", dict)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    return asked


@pytest.mark.parametrize("name", MULTILINGUAL)
@pytest.mark.parametrize("named", ["hub", "gone", "folder", "relative"])
def test_a_folder_works_without_a_network_wherever_it_lies(
    tmp_path: Path, no_network: list[str], name: str, named: str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    family(folder, name)
    if named == "relative":
        (folder / "text").mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / file).rename(folder / "text" / file)
    if named != "hub":
        path = {"gone": "/was/elsewhere", "folder": str(folder), "relative": "text"}[named]
        _rename(folder, hf_model_name=path, hf_tokenizer_name=path)
    before = load(f"local-dir:{folder}", device="cpu")
    moved = tmp_path / "moved" / "there"
    moved.parent.mkdir()
    folder.rename(moved)
    after = load(f"local-dir:{moved}", device="cpu")
    assert after.generation.id == before.generation.id
    np.testing.assert_array_equal(after.embed_texts(TEXTS), before.embed_texts(TEXTS))
    assert no_network == []


@pytest.mark.parametrize("named", ["/nowhere", "./text", "~/text"])
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, named: str) -> None:
    family(tmp_path, "xlm-roberta")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    _rename(tmp_path, hf_tokenizer_name=named)
    with pytest.raises(ConfigurationError, match=f"names {named} as `hf_tokenizer_name`.*tokenizer.json") as caught:
        load(f"local-dir:{tmp_path}", device="cpu")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_text_tower_of_the_hub_fails_at_once_without_a_network(
    tmp_path: Path, no_network: list[str], missing: str
) -> None:
    family(tmp_path, "xlm-roberta")
    (tmp_path / missing).unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    if missing == "config.json":  # another library's file of that name
        (tmp_path / missing).write_text(json.dumps({"architecture": "vit"}))
    _rename(tmp_path, hf_model_name="nobody/no-tower", hf_tokenizer_name="nobody/no-tokenizer")
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match=rf"{tmp_path}.*cannot be resolved.*nobody/no-t.*tokenizer.json"):
        load(f"local-dir:{tmp_path}", device="cpu")
    assert time.monotonic() - started < 20
    assert len(set(no_network)) == 1  # the check itself


def test_a_missing_transformers_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family(tmp_path, "siglip2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for model in (f"local-dir:{tmp_path}", "ViT-B-16-SigLIP/webli"):
        with pytest.raises(ConfigurationError, match=r'pip install "reelsrs\[transformers\]"'):
            load(model, device="cpu")
    assert load(small_vit(tmp_path, 0), device="cpu").generation.dimension == 128
