"""Measures the tiny model on scenes whose captions it has never seen: `python -m service.embedding.tiny.measure`.

Knows open_clip's own loading, preprocessing and tokenizer, and PyAV. Knows nothing of the service's
embedder: the figures hold for the folder of weights by itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from service.embedding.tiny import FOLDER, is_held_out
from service.media.synthetic.drawing import draw_frame, write_clip
from service.media.synthetic.scenes import Scene, random_scene

FRAMES_PER_CLIP = 10
CLIP_COUNT = 100
SEED = 20_000


@dataclass(frozen=True)
class Figures:
    recall_at_1_drawn: float
    """Text to clip, frames straight from `draw_frame`."""
    recall_at_1_encoded: float
    """Text to clip, frames from an encoded and decoded file."""


class TinyModel:
    """A folder of weights with the preprocessing and tokenizer that open_clip makes for it."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        self._model: Any = model.eval()
        self._preprocess: Any = preprocess
        self._tokenizer: Any = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def embed_clip(self, frames: Sequence[Image.Image]) -> NDArray[np.float32]:
        """The normalised mean of the frames' normalised embeddings, (D,)."""
        batch = torch.stack([self._preprocess(frame) for frame in frames])
        mean = self._model.encode_image(batch, normalize=True).mean(0)
        vector: NDArray[np.float32] = (mean / mean.norm()).numpy()
        return vector

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Normalised embeddings, (N, D)."""
        vectors: NDArray[np.float32] = self._model.encode_text(self._tokenizer(list(texts)), normalize=True).numpy()
        return vectors


def unseen_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with distinct captions, all of them held out from training."""
    rng = np.random.default_rng(seed)
    by_caption: dict[str, Scene] = {}
    while len(by_caption) < count:
        scene = random_scene(rng)
        if is_held_out(scene.caption):
            by_caption.setdefault(scene.caption, scene)
    return list(by_caption.values())


def middles(count: int) -> list[float]:
    """The middles of `count` equal parts of 0..1."""
    return [(part + 0.5) / count for part in range(count)]


def decoded_frames(path: Path, count: int = FRAMES_PER_CLIP) -> list[Image.Image]:
    """`count` frames spread evenly over the clip."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [Image.fromarray(frames[int(middle * len(frames))]) for middle in middles(count)]


def recall_at_1(texts: NDArray[np.float32], clips: NDArray[np.float32]) -> float:
    """The share of texts whose nearest clip is their own; row i of each belongs together."""
    return float(np.mean(np.argmax(texts @ clips.T, axis=1) == np.arange(len(texts))))


def measure(folder: Path = FOLDER, count: int = CLIP_COUNT, seed: int = SEED) -> Figures:
    model = TinyModel(folder)
    scenes = unseen_scenes(count, seed)
    texts = model.embed_texts([scene.caption for scene in scenes])
    drawn, encoded = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, scene in enumerate(scenes):
            pictures = [draw_frame(scene, moment, 256, 256) for moment in middles(FRAMES_PER_CLIP)]
            drawn.append(model.embed_clip(pictures))
            path = Path(scratch) / f"{number}.mp4"
            write_clip(scene, path)
            encoded.append(model.embed_clip(decoded_frames(path)))
    return Figures(recall_at_1(texts, np.stack(drawn)), recall_at_1(texts, np.stack(encoded)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the tiny model on unseen drawn clips.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=CLIP_COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    figures = measure(arguments.folder, arguments.count, arguments.seed)
    print(
        json.dumps(
            {
                "unseen_clips": arguments.count,
                "recall_at_1_drawn": round(figures.recall_at_1_drawn, 4),
                "recall_at_1_encoded": round(figures.recall_at_1_encoded, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
