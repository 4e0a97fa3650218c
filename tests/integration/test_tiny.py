"""Tests of the committed tiny model: small, loadable by open_clip, and accurate on unseen captions."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from service.embedding.tiny import FOLDER, OPEN_CLIP_NAME, is_held_out
from service.embedding.tiny.train import training_scenes
from service.media.synthetic.drawing import write_clip
from service.media.synthetic.scenes import Scene, distinct_scenes, random_scene

SEED = 31_337  # differs from the seeds of the training and of the README's figures
FRAMES = 10


@pytest.fixture(scope="module")
def tiny() -> tuple[torch.nn.Module, object]:
    model, _, preprocess = open_clip.create_model_and_transforms(OPEN_CLIP_NAME)
    return model.eval(), preprocess


def unseen(count: int) -> list[Scene]:
    rng = np.random.default_rng(SEED)
    by_caption: dict[str, Scene] = {}
    while len(by_caption) < count:
        scene = random_scene(rng)
        if is_held_out(scene.caption):
            by_caption.setdefault(scene.caption, scene)
    return list(by_caption.values())


def frames_of(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[int((part + 0.5) / FRAMES * len(frames))] for part in range(FRAMES)]


def test_the_folder_is_small_and_says_what_it_is_not_for() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 10_000_000
    config = json.loads((FOLDER / "open_clip_config.json").read_text())
    assert "not-for-production" in config["note"]
    assert "not for production" in (FOLDER / "README.md").read_text().lower()


def test_captions_are_split_by_their_hash_alone() -> None:
    assert is_held_out("a red heart") == is_held_out("a red heart")
    scenes = distinct_scenes(2_000, seed=1)
    assert 0.09 < np.mean([is_held_out(scene.caption) for scene in scenes]) < 0.16
    assert not any(is_held_out(scene.caption) for scene in training_scenes(500, seed=1))


def test_the_model_is_whole_and_finite(tiny: tuple[torch.nn.Module, object]) -> None:
    model, _ = tiny
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32, name
            assert torch.isfinite(value).all(), name
    tokens = open_clip.get_tokenizer(OPEN_CLIP_NAME)(["", "two red hearts", "naïve 漢字 🙂", "word " * 500])
    with torch.inference_mode():
        texts = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        extremes = torch.stack([torch.full((3, 64, 64), value) for value in (-2.0, 0.0, 2.5)])
        images = model.encode_image(extremes, normalize=True)  # type: ignore[operator]
    assert torch.isfinite(texts).all()
    assert torch.isfinite(images).all()
    assert texts.shape[1] == images.shape[1] == 192


def test_captions_never_seen_find_their_encoded_clip(tiny: tuple[torch.nn.Module, object], tmp_path: Path) -> None:
    model, preprocess = tiny
    scenes = unseen(100)
    assert all(is_held_out(scene.caption) for scene in scenes)
    clips = []
    with torch.inference_mode():
        for number, scene in enumerate(scenes):
            path = tmp_path / f"{number}.mp4"
            write_clip(scene, path, seconds=1)
            batch = torch.stack([preprocess(frame) for frame in frames_of(path)])  # type: ignore[operator]
            mean = model.encode_image(batch, normalize=True).mean(0)  # type: ignore[operator]
            clips.append(mean / mean.norm())
        tokens = open_clip.get_tokenizer(OPEN_CLIP_NAME)([scene.caption for scene in scenes])
        texts = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    best = (texts @ torch.stack(clips).T).argmax(1)
    assert (best == torch.arange(100)).float().mean() >= 0.9
