"""Train the tiny model from scratch: `python -m service.embedding.tiny.train [--output DIR]`.

All clips are drawn here; no image or text from elsewhere is used. Three losses are added:

1. The contrastive loss of CLIP. A caption that fits several clips of the batch has all of them as targets.
2. A linear classification of the caption's facts, shared by both towers. It makes their agreement quick to find.
3. A contrastive loss between two views of a collage, an image without any meaning. It keeps the image tower able to
   distinguish clips that no caption describes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from service.embedding.tiny import FOLDER, is_held_out
from service.embedding.tiny.measure import measure
from service.media.synthetic.drawing import draw_frame
from service.media.synthetic.scenes import COLOURS, COUNTS, MOTIONS, SETTINGS, SHAPES, TINTS, Scene, random_scene

SEED = 7
SCENES = 12_000
FRAMES_PER_SCENE = 3
POOL_PX = 72
STEPS = 900
CLIPS_PER_BATCH = 192
FRAMES_PER_CLIP = 2
COLLAGES_PER_BATCH = 96
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 120
WEIGHT_DECAY = 0.05
PARTIAL_CAPTIONS = 0.35
COLLAGE_TEMPERATURE = 0.1
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"

_VALUES: dict[str, list[Any]] = {
    "shape": list(SHAPES),
    "colour": list(COLOURS),
    "count": list(COUNTS),
    "motion": list(MOTIONS),
    "setting": list(SETTINGS),
    "tint": ["", *TINTS],
}
_UNSTATED = -1
_OPENINGS = ("a video of", "a clip of", "a photo of", "a picture of")


@dataclass(frozen=True)
class Pool:
    """All scenes of the training, drawn once."""

    scenes: list[Scene]
    frames: Tensor
    """(scenes, frames, 3, POOL_PX, POOL_PX) uint8."""
    facts: Tensor
    """(scenes, facts) int64: the index of each fact in its list of values."""


def training_scenes(count: int, seed: int) -> list[Scene]:
    """Return random scenes whose captions are not left out of training."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if not is_held_out(scene.caption):
            scenes.append(scene)
    return scenes


def draw_pool(count: int, seed: int, processes: int) -> Pool:
    """Draw the training scenes in several processes."""
    scenes = training_scenes(count, seed)
    parts = [scenes[start : start + 200] for start in range(0, count, 200)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as executor:
        frames = np.concatenate(list(executor.map(_draw_part, parts)))
    facts = [[values.index(getattr(scene, fact)) for fact, values in _VALUES.items()] for scene in scenes]
    return Pool(scenes, torch.from_numpy(frames), torch.tensor(facts))


def _draw_part(scenes: list[Scene]) -> NDArray[np.uint8]:
    frames = np.empty((len(scenes), FRAMES_PER_SCENE, 3, POOL_PX, POOL_PX), np.uint8)
    for row, scene in enumerate(scenes):
        rng = np.random.default_rng(scene.seed)
        for column in range(FRAMES_PER_SCENE):
            time_share = (column + rng.uniform()) / FRAMES_PER_SCENE
            # Drawn larger and reduced, as a real clip is reduced for the model.
            image = draw_frame(scene, time_share, 2 * POOL_PX, 2 * POOL_PX).reduce(2)
            frames[row, column] = np.asarray(image).transpose(2, 0, 1)
    return frames


def caption_for(scene: Scene, facts: Tensor, rng: np.random.Generator) -> tuple[str, Tensor]:
    """Return a text that a user might write about a scene, and the scene's facts.

    Facts that the text leaves out are -1. The text is mostly the full caption. Sometimes it is a part, because people
    search with few words.
    """
    text, unstated = scene.caption, set[str]()
    if rng.uniform() < PARTIAL_CAPTIONS:
        text, unstated = _few_words(scene, rng)
    if rng.uniform() < 0.15:
        text = f"{_OPENINGS[rng.integers(len(_OPENINGS))]} {text}"
    left_out = torch.tensor([fact in unstated for fact in _VALUES])
    return text, facts.masked_fill(left_out, _UNSTATED)


def _few_words(scene: Scene, rng: np.random.Generator) -> tuple[str, set[str]]:
    """Return a part of a scene's caption, and the names of the facts that this part leaves out."""
    noun = scene.shape if rng.uniform() < 0.4 else SHAPES[scene.shape]
    words, unstated = {
        0: (scene.subject, set[str]()),
        1: (f"{scene.colour} {noun}", {"count"}),
        2: (noun, {"count", "colour"}),
        3: ("", {"count", "colour", "shape"}),
    }[int(rng.integers(4))]
    if rng.uniform() < 0.4:
        words = f"{words} {MOTIONS[scene.motion]}"
    else:
        unstated |= {"motion"}
    if not words or rng.uniform() < 0.4:
        tint = scene.tint if rng.uniform() < 0.6 else ""
        words = f"{words} {SETTINGS[scene.setting].format(tint=tint)}"
        if scene.tint and not tint:
            unstated |= {"tint"}
    else:
        unstated |= {"setting", "tint"}
    return " ".join(words.split()), unstated


# --- augmentation: what happens to an image when it is filmed, encoded and decoded


class Augmenter:
    """Image augmentation: slightly different views of the same images, from a seeded random generator."""

    def __init__(self, size_px: int, mean: tuple[float, ...], std: tuple[float, ...], seed: int) -> None:
        self._size_px = size_px
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return a tensor of this shape with uniform random numbers from `low` to `high`."""
        return low + (high - low) * torch.rand(*shape, generator=self._generator)

    def augment(self, images: Tensor, *, zoom: tuple[float, float], shift: float, light: float) -> Tensor:
        """Augment (N, 3, H, W) images in 0..1; return (N, 3, size, size), normalised as open_clip does.

        Args:
            images: images, with values from 0 to 1.
            zoom: least and greatest share of the image that is visible.
            shift: greatest offset, where 1 is half of the image.
            light: greatest change of brightness, saturation and contrast, as a share.
        """
        count = len(images)
        # Width and height have slightly unequal scales, as if the clip was squeezed. Images are never mirrored, because
        # captions name left and right.
        both = self.uniform(*zoom, count, 1)
        scales = both * self.uniform(0.96, 1.04, count, 2)
        views = self._crop(images, scales, self.uniform(-shift, shift, count, 2))
        gain = self.uniform(1 - light, 1 + light, count, 1, 1, 1) * self.uniform(0.97, 1.03, count, 3, 1, 1)
        grey = views.mean(1, keepdim=True)
        views = grey + (views - grey) * self.uniform(1 - light, 1 + light, count, 1, 1, 1)
        middle = views.mean((1, 2, 3), keepdim=True)
        views = middle + (views - middle) * self.uniform(1 - light, 1 + light, count, 1, 1, 1)
        views = self._imitate_compression(views * gain + self.uniform(-light, light, count, 1, 1, 1) / 3)
        return ((views.clamp(0, 1) - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    def collages(self, images: Tensor) -> Tensor:
        """Blend the three thirds of a batch into collages, with altered colours.

        Takes (3 N, 3, H, W) images in 0..1 and returns (N, 3, H, W).
        """
        layers = images.view(3, -1, *images.shape[1:])
        count = layers.shape[1]
        collage = torch.zeros_like(layers[0])
        masks = torch.randn(3, count, 1, 6, 6, generator=self._generator)
        for layer, mask in zip(layers, masks, strict=True):
            scales, offsets = self.uniform(0.25, 0.9, count, 2), self.uniform(-0.5, 0.5, count, 2)
            turned = torch.where(self.uniform(0, 1, count, 1, 1, 1) < 0.5, layer.flip(3), layer)
            view = self._crop(turned, scales, offsets, collage.shape[-1])
            colours = torch.softmax(2.5 * torch.randn(count, 3, 3, generator=self._generator), -1)
            view = torch.einsum("nij,njhw->nihw", colours, view)
            cover = functional.interpolate(mask, collage.shape[-2:], mode="bicubic", align_corners=False)
            collage = collage + torch.sigmoid(6 * cover) * (view - collage)
        brightness = self.uniform(0.6, 1.5, count, 1, 1, 1)
        return (collage * brightness + self.uniform(-0.2, 0.2, count, 3, 1, 1)).clamp(0, 1)

    def _crop(self, images: Tensor, scales: Tensor, offsets: Tensor, size_px: int | None = None) -> Tensor:
        """Sample the images at these scales and offsets, by default at the size of the model's images."""
        matrix = torch.zeros(len(images), 2, 3)
        matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = scales[:, 0], scales[:, 1], offsets
        size = size_px or self._size_px
        grid = functional.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _imitate_compression(self, views: Tensor) -> Tensor:
        """Imitate compression: soften some views, coarsen the colour of some, and add noise to all."""
        count, size = len(views), views.shape[-1]
        softer = functional.interpolate(functional.avg_pool2d(views, 2), size, mode="bilinear")
        views = views + self._random_mask(count, 0.3) * self.uniform(0.3, 1, count, 1, 1, 1) * (softer - views)
        brightness = views.mean(1, keepdim=True)
        tint = views - brightness
        coarse = functional.interpolate(functional.avg_pool2d(tint, 4), size, mode="bilinear")
        views = views + self._random_mask(count, 0.3) * (coarse - tint)
        noise = torch.randn(views.shape, generator=self._generator)
        return views + self.uniform(0, 0.03, count, 1, 1, 1) * noise

    def _random_mask(self, count: int, share: float) -> Tensor:
        """Return (count, 1, 1, 1) random numbers that are 1 for about this share, else 0."""
        return (self.uniform(0, 1, count, 1, 1, 1) < share).float()


# --- losses


def caption_loss(texts: Tensor, clips: Tensor, scale: Tensor, fits: Tensor) -> Tensor:
    """Return CLIP's contrastive loss. `fits[i, j]` states whether text i describes clip j."""
    logits = scale * texts @ clips.T
    wanted = fits.float()
    to_clips = -(wanted / wanted.sum(1, keepdim=True) * functional.log_softmax(logits, 1)).sum(1)
    to_texts = -(wanted / wanted.sum(0, keepdim=True) * functional.log_softmax(logits, 0)).sum(0)
    return 0.5 * (to_clips.mean() + to_texts.mean())


def collage_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the contrastive loss of (N, D) unit vectors of two views per collage.

    Each view must find the other view of its collage among all views.
    """
    views = torch.cat([first, second])
    logits = (views @ views.T / COLLAGE_TEMPERATURE).fill_diagonal_(-math.inf)
    twins = torch.arange(len(views)).roll(len(first))
    return functional.cross_entropy(logits, twins)


class FactClassifier(nn.Module):
    """One linear classifier per fact, from an embedding; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._sizes = [len(values) for values in _VALUES.values()]
        self._linear = nn.Linear(width, sum(self._sizes))

    def loss(self, embeddings: Tensor, facts: Tensor) -> Tensor:
        """Return the mean cross-entropy of all facts.

        Embeddings are (N, D), facts are (N, facts) int64. Facts of -1 do not count.
        """
        logits = self._linear(10 * embeddings).split(self._sizes, 1)
        losses = [
            functional.cross_entropy(fact_logits, facts[:, position], ignore_index=_UNSTATED, label_smoothing=0.05)
            for position, fact_logits in enumerate(logits)
        ]
        return torch.stack(losses).mean()


def _optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [
            {"params": [each for each in parameters if each.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )


def _set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rate of a step: a linear warm-up, then a cosine decay."""
    factor = min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * factor


def _format_losses(losses: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())


def _clips(pool: Pool, rng: np.random.Generator) -> tuple[Tensor, list[tuple[str, Tensor]], Tensor]:
    """Return the random clips of a step: frames, texts with the facts that they state, and all facts.

    Frames are (clips x frames, 3, POOL_PX, POOL_PX) in 0..1.
    """
    rows = rng.choice(len(pool.scenes), CLIPS_PER_BATCH, replace=False)
    columns = np.argsort(rng.uniform(size=(CLIPS_PER_BATCH, FRAMES_PER_SCENE)), 1)[:, :FRAMES_PER_CLIP]
    frames = pool.frames[rows[:, None], columns].flatten(0, 1).float() / 255
    return frames, [caption_for(pool.scenes[row], pool.facts[row], rng) for row in rows], pool.facts[rows]


def train(output: Path, *, steps: int = STEPS, scene_count: int = SCENES, seed: int = SEED) -> None:
    """Train the model, and save it in the folder `output`."""
    started = time.monotonic()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool = draw_pool(scene_count, seed, processes=os.cpu_count() or 1)
    print(f"drew {scene_count} scenes in {time.monotonic() - started:.0f} s", flush=True)
    config = json.loads((FOLDER / CONFIG).read_text())
    model: Any = CLIP(**config["model_cfg"])
    model.visual.to(memory_format=torch.channels_last)
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    preprocess = config["preprocess_cfg"]
    size_px = config["model_cfg"]["vision_cfg"]["image_size"]
    augmenter = Augmenter(size_px, preprocess["mean"], preprocess["std"], seed)
    classifier = FactClassifier(config["model_cfg"]["embed_dim"])
    parameters = [*model.parameters(), *classifier.parameters()]
    optimizer = _optimizer(parameters)
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    model.train()
    for step in range(steps):
        _set_learning_rate(optimizer, step, steps)
        frames, captions, facts = _clips(pool, rng)
        stated = torch.stack([stated for _, stated in captions])
        fits = ((stated[:, None] == facts[None]) | (stated[:, None] == _UNSTATED)).all(2)
        picked = rng.integers(scene_count, size=3 * COLLAGES_PER_BATCH)
        collages = augmenter.collages(pool.frames[picked, 0].float() / 255)
        views = [augmenter.augment(frames, zoom=(0.82, 1.02), shift=0.05, light=0.15)]
        views += [augmenter.augment(collages, zoom=(0.6, 0.95), shift=0.15, light=0.2) for _ in range(2)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            vectors = model.encode_image(torch.cat(views)).float()
        vectors = functional.normalize(vectors, dim=-1)
        drawn, collaged = vectors[: len(frames)], vectors[len(frames) :]
        first, second = collaged.chunk(2)
        clips = functional.normalize(drawn.view(CLIPS_PER_BATCH, FRAMES_PER_CLIP, -1).mean(1), dim=-1)
        texts = model.encode_text(tokenizer([text for text, _ in captions]), normalize=True)

        by_caption = caption_loss(texts, clips, model.logit_scale.exp(), fits)
        by_fact = classifier.loss(clips, facts) + classifier.loss(texts, stated)
        by_collage = collage_loss(first, second)
        loss: Any = by_caption + by_fact + 0.4 * by_collage
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0 or step == steps - 1:
            losses = {"caption": by_caption, "facts": by_fact, "collages": by_collage}
            print(f"step {step} of {steps}, {time.monotonic() - started:.0f} s: {_format_losses(losses)}", flush=True)
    save(model, output)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def save(model: nn.Module, output: Path) -> None:
    """Save weights in half precision, and the configuration, in open_clip's folder format."""
    output.mkdir(parents=True, exist_ok=True)
    # This halves the file. Scales and variances of the norms, a few kilobytes, stay exact.
    weights = {
        name: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, str(output / WEIGHTS))
    (output / WEIGHTS).chmod(0o644)  # safetensors makes the file readable by its owner only
    if output.resolve() != FOLDER:
        shutil.copyfile(FOLDER / CONFIG, output / CONFIG)


def main() -> None:
    """Train the model, measure it, and print the figures."""
    parser = argparse.ArgumentParser(description="Train the tiny model on drawn clips. Not for production.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for weights and configuration")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    train(arguments.output, steps=arguments.steps, scene_count=arguments.scenes, seed=arguments.seed)
    recall = measure(arguments.output)
    print(
        f"100 unseen clips, text to clip, recall@1: {recall.recall_at_1_drawn:.2f} as drawn, "
        f"{recall.recall_at_1_encoded:.2f} encoded and decoded"
    )


if __name__ == "__main__":
    main()
