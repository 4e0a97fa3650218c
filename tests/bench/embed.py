"""Benchmark embedding: how fast a model embeds on each device and precision of this machine, in one run.

    python tests/bench/embed.py [--model ViT-B-32 ...] [--rounds 3]

The model is an open_clip architecture with random weights, which take as long as trained weights. The methods take
turns; a figure is the median of the turns, on all cores. `mathematics` compares the floating-point operations per
second of the image tower with those of a matrix product on the same device. The last line is JSON. CUDA is measured if
available; otherwise the output says that it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from ingest import model_folder

from service.embedding.encoder import Encoder
from service.embedding.loading import load
from service.errors import ReelsError

WAYS = {
    "torch float32": {"device": "cpu", "precision": "float32"},
    "torch bfloat16": {"device": "cpu", "precision": "bfloat16"},
    "openvino float32": {"device": "openvino", "precision": "float32"},
    "openvino int8": {"device": "cpu", "precision": "int8"},
    "cuda float16": {"device": "cuda", "precision": "float16"},
}
WORDS = "a dog runs along a beach at sunset"


def floating_point_operations(folder: str) -> int:
    """Count the floating-point operations of the image tower for one image."""
    embedder = load(folder, device="cpu")
    with FlopCounterMode(display=False) as counter:
        embedder.embed_images(embedder.examples()[0][:1])
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a matrix product, best of five."""
    size = 2048 if device == "cpu" else 8192
    one = torch.rand(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        product = one @ one
        product[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def measure(embedder: Encoder, pictures: np.ndarray) -> dict[str, float]:
    """Measure images per second, texts per second, and milliseconds of a single text, once."""
    started = time.perf_counter()
    embedder.embed_images(pictures)
    seen = time.perf_counter()
    embedder.embed_texts([f"{WORDS} {number}" for number in range(32)])
    read = time.perf_counter()
    embedder.embed_texts([WORDS])
    return {
        "pictures_per_second": len(pictures) / (seen - started),
        "texts_per_second": 32 / (read - seen),
        "one_text_milliseconds": (time.perf_counter() - read) * 1000,
    }


def one_model(name: str, rounds: int, scratch: Path) -> dict[str, Any]:
    """Measure one architecture with every method in turn; return the figures."""
    folder = model_folder(name, scratch)
    operations = floating_point_operations(folder)
    result: dict[str, Any] = {"gflop_per_picture": round(operations / 1e9, 2)}
    embedders: dict[str, Encoder] = {}
    for label, way in WAYS.items():
        started = time.perf_counter()
        try:
            embedders[label] = load(folder, cache_dir=scratch / "kept" / name, **way)
        except ReelsError as error:
            result[label] = f"not measured: {error}"
            continue
        result[label] = {"load_seconds": round(time.perf_counter() - started, 1)}
    pictures = np.concatenate([embedders["torch float32"].examples()[0]] * 2)
    reference = embedders["torch float32"].embed_images(pictures[-8:])
    turns: dict[str, list[dict[str, float]]] = {label: [] for label in embedders}
    for _ in range(rounds):
        for label, embedder in embedders.items():
            many = pictures if embedder.batch <= 64 else pictures.repeat(embedder.batch // 16, axis=0)
            turns[label].append(measure(embedder, many))
    for label, embedder in embedders.items():
        middle = {key: statistics.median(turn[key] for turn in turns[label]) for key in turns[label][0]}
        cosine = float((embedder.embed_images(pictures[-8:]) * reference).sum(axis=1).min())
        result[label] |= {key: round(value, 1) for key, value in middle.items()}
        result[label] |= {"batch": embedder.batch, "least_cosine": round(cosine, 5)}
        if "float32" in label or "cuda" in label:
            cuda = "cuda" in label
            rate = matrix_rate("cuda" if cuda else "cpu", torch.float16 if cuda else torch.float32)
            reached = operations * middle["pictures_per_second"]
            result[label]["mathematics"] = {
                "gflop_per_second": round(reached / 1e9, 1),
                "product_of_matrices": round(rate / 1e9, 1),
            }
        print(name, label, result[label], file=sys.stderr)
    base = result["torch float32"]["pictures_per_second"]
    result["to_torch_float32"] = {
        label: round(result[label]["pictures_per_second"] / base, 2) for label in embedders if label != "torch float32"
    }
    return result


def main() -> None:
    """Measure each model and print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", nargs="+", default=["ViT-B-32"])
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: one_model(name, given.rounds, Path(scratch)) for name in given.model}
    print(json.dumps({"benchmark": "embed", "cores": os.cpu_count(), "cuda": torch.cuda.is_available(), **found}))


if __name__ == "__main__":
    main()
