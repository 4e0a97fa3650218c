"""Make the starter model: a classifier of images and a model of sentences, joined into one CLIP checkpoint.

A sentence model says what each class of the classifier means. An image is then the sum of the meanings of the classes
that it shows; a text is the sum of its tokens, fitted to what the sentence model says of whole texts. Nothing is
trained on images or clips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.embedding.starter import NOTE, corpus, image_tower, text_tower
from service.embedding.starter.sentence_model import DIMENSION, SentenceModel

_WIDTH = 512  # dimension of the vectors; the image tower then has room for twice as many classes
_SHARE_OF_TEXTS = 0.85  # of the time that it takes
Vectors = npt.NDArray[np.float64]


def build(folder: Path, on_progress: Callable[[float], None]) -> None:
    """Write the model into an empty folder, in open_clip's format. This takes one to two minutes on one core.

    Args:
        folder: receives `open_clip_config.json` and `open_clip_model.safetensors`.
        on_progress: called with the share done, 0 to 1.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    tokenizer = open_clip.SimpleTokenizer(context_length=text_tower.CONTEXT)
    texts, words = corpus.read(), text_tower.words(tokenizer)
    flat = [text for one in texts.classes for text in one]
    total, done = len(words) + len(flat) + len(texts.others), 0

    def count(finished: int) -> None:
        nonlocal done
        done += finished
        on_progress(_SHARE_OF_TEXTS * done / total)

    model = SentenceModel(count)
    said, of_others = model.embed(flat), model.embed(texts.others)
    of_words = model.embed(list(words.values()), max_tokens=8)
    classes, common = _meanings(said, len(texts.classes))
    # What all texts have in common says nothing about any of them, so its direction is removed.
    of_words -= of_words.mean(axis=0)
    targets, of_words = (each - (each @ common)[:, None] * common for each in (np.vstack([said, of_others]), of_words))
    table = text_tower.fit(tokenizer, dict(zip(words, of_words, strict=True)), [*flat, *texts.others], _unit(targets))
    config = {"embed_dim": _WIDTH, "vision_cfg": image_tower.config(), "text_cfg": text_tower.config(table)}
    class_vectors = torch.from_numpy(classes).float()
    image = {f"visual.{name}": one for name, one in image_tower.state(class_vectors, _WIDTH).items()}
    weights = text_tower.state(table, _WIDTH) | image | {"logit_scale": torch.tensor(math.log(100.0))}
    clip: Any = open_clip.CLIP(**config)
    clip.load_state_dict(weights)  # raises if a weight is missing or has another shape
    path = folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors lets only its owner read a file
    described = {
        "note": f"The model starter of ReelsRS. {NOTE}",
        "model_cfg": config,
        "preprocess_cfg": image_tower.PREPROCESSING,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    on_progress(1.0)


def _meanings(said: Vectors, classes: int) -> tuple[Vectors, Vectors]:
    """Return unit vectors of the classes, (classes, D), and the direction that they have in common, (D,).

    `said` are the vectors of the texts on the classes, as many for each class. The vectors of the classes are centred.
    """
    meanings = _unit(said.reshape(classes, -1, DIMENSION).sum(axis=1))
    mean = meanings.mean(axis=0)
    return _unit(meanings - mean), _unit(mean)


def _unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled
