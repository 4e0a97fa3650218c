"""The model `starter` comes out the same on different machines: other numbers of threads, other vector instructions.

The text tower's fit alone by default, on a part of the texts; with `--soak` two whole builds, five minutes and more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.embedding import openvino_towers
from service.embedding.loading import load
from tests.support.paths import ROOT
from tests.support.processes import CHILD_ENVIRONMENT, tied

MACHINES = ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"})
LEAST = 1 - 1e-4

# Fits the text tower to a few texts, and writes the token vectors.
SHORT = """
import sys
import numpy as np
import open_clip
from service.embedding.starter import corpus, text_tower
from service.embedding.starter.sentence_model import SentenceModel
tokenizer, model = open_clip.SimpleTokenizer(), SentenceModel()
words = dict(list(text_tower.words(tokenizer).items())[:300])
texts = [text for one in corpus.read().classes[:50] for text in one]
of_words = dict(zip(words, model.embed(list(words.values())), strict=True))
np.save(sys.argv[1], text_tower.fit(tokenizer, of_words, texts, model.embed(texts)))
"""
LONG = "from service.embedding.starter import store; store.made()"


def _run(program: str, *arguments: str, **environment: str) -> None:
    subprocess.run(
        tied(sys.executable, "-c", program, *arguments),
        env={**CHILD_ENVIRONMENT, **environment},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def _least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / lengths).min())


def test_two_machines_make_the_same_vectors(
    starter_cache: Path, tmp_path: Path, soak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not soak:
        tables = []
        for number, machine in enumerate(MACHINES):
            _run(SHORT, str(tmp_path / f"{number}.npy"), **machine)
            tables.append(np.load(tmp_path / f"{number}.npy"))
        fitted = np.linalg.norm(tables[0], axis=1) > 0
        assert fitted.sum() > 300
        assert _least_cosine(tables[0][fitted], tables[1][fitted]) > LEAST
        return
    captions, vectors = openvino_towers.calibration()[1], []
    for number, machine in enumerate(MACHINES):
        cache = str(tmp_path / str(number))
        _run(LONG, **machine, XDG_CACHE_HOME=cache)
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        model = load("starter", device="cpu")
        vectors.append((model.generation, model.embed_images(model.examples()[0]), model.embed_texts(captions)))
    (first, *ours), (second, *theirs) = vectors
    assert first == second
    for one, other in zip(ours, theirs, strict=True):
        assert _least_cosine(one, other) > LEAST
