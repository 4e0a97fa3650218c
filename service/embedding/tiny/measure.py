"""Measure the tiny model on captions unseen in training: `python -m service.embedding.tiny.measure`.

The measurement uses open_clip's own loading, preprocessing and tokenizer, and PyAV, not the service's encoder. The
figures therefore hold for the folder of weights by itself.
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
class Recall:
    """Share of captions whose nearest clip is their own, from 0 to 1."""

    recall_at_1_drawn: float
    """Text to clip, with frames directly from `draw_frame`."""
    recall_at_1_encoded: float
    """Text to clip, with frames from an encoded and decoded file."""


class TinyModel:
    """A folder of weights, with the preprocessing and the tokenizer that open_clip creates for it."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        self._model: Any = model.eval()
        self._preprocess: Any = preprocess
        self._tokenizer: Any = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def embed_clip(self, frames: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the (D,) float32 normalised mean of the frames' normalised embeddings."""
        batch = torch.stack([self._preprocess(frame) for frame in frames])
        mean = self._model.encode_image(batch, normalize=True).mean(0)
        vector: NDArray[np.float32] = (mean / mean.norm()).numpy()
        return vector

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return normalised (N, D) float32 embeddings of N texts."""
        vectors: NDArray[np.float32] = self._model.encode_text(self._tokenizer(list(texts)), normalize=True).numpy()
        return vectors


def unseen_scenes(count: int, seed: int) -> list[Scene]:
    """Return random scenes with distinct captions, all of them left out of training."""
    rng = np.random.default_rng(seed)
    by_caption: dict[str, Scene] = {}
    while len(by_caption) < count:
        scene = random_scene(rng)
        if is_held_out(scene.caption):
            by_caption.setdefault(scene.caption, scene)
    return list(by_caption.values())


def middles(count: int) -> list[float]:
    """Return the middles of `count` equal parts of the interval from 0 to 1."""
    return [(part + 0.5) / count for part in range(count)]


def decoded_frames(path: Path, count: int = FRAMES_PER_CLIP) -> list[Image.Image]:
    """Decode a clip, and return `count` frames spread evenly over it."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [Image.fromarray(frames[int(middle * len(frames))]) for middle in middles(count)]


def recall_at_1(texts: NDArray[np.float32], clips: NDArray[np.float32]) -> float:
    """Return the share of texts whose nearest clip is their own.

    Row i of `texts` belongs to row i of `clips`; both are (N, D) unit vectors.
    """
    return float(np.mean(np.argmax(texts @ clips.T, axis=1) == np.arange(len(texts))))


def measure(folder: Path = FOLDER, count: int = CLIP_COUNT, seed: int = SEED) -> Recall:
    """Measure the model in `folder` on `count` unseen scenes, as drawn and as encoded clips."""
    model = TinyModel(folder)
    scenes = unseen_scenes(count, seed)
    texts = model.embed_texts([scene.caption for scene in scenes])
    drawn, encoded = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, scene in enumerate(scenes):
            images = [draw_frame(scene, position, 256, 256) for position in middles(FRAMES_PER_CLIP)]
            drawn.append(model.embed_clip(images))
            path = Path(scratch) / f"{number}.mp4"
            write_clip(scene, path)
            encoded.append(model.embed_clip(decoded_frames(path)))
    return Recall(recall_at_1(texts, np.stack(drawn)), recall_at_1(texts, np.stack(encoded)))


def main() -> None:
    """Measure the model, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure the tiny model on unseen drawn clips.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=CLIP_COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    recall = measure(arguments.folder, arguments.count, arguments.seed)
    print(
        json.dumps(
            {
                "unseen_clips": arguments.count,
                "recall_at_1_drawn": round(recall.recall_at_1_drawn, 4),
                "recall_at_1_encoded": round(recall.recall_at_1_encoded, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
