"""The sentence model all-MiniLM-L6-v2, which says what texts mean. Used only while the starter model is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from service.embedding.starter import inputs

DIMENSION = 384
_BATCH_TOKENS = 2048


class SentenceModel:
    """The loaded sentence model. `on_texts` is called with the number of texts of every finished batch."""

    def __init__(self, on_texts: Callable[[int], None] = lambda _: None) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the caller shows its own
        folder = inputs.find(inputs.SENTENCE_MODEL)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).float().eval()
        self._on_texts = on_texts

    def embed(self, texts: Sequence[str], max_tokens: int = 48) -> npt.NDArray[np.float64]:
        """Return (N, 384) unit vectors of N texts, each cut to `max_tokens` tokens."""
        import torch

        rows: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        vectors: npt.NDArray[np.float64] = np.empty((len(texts), DIMENSION))
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # texts of one length need no padding
        start = 0
        with torch.inference_mode():
            while start < len(order):
                length = len(rows[order[start]])
                batch = [
                    place
                    for place in order[start : start + max(1, _BATCH_TOKENS // length)]
                    if len(rows[place]) == length
                ]
                hidden = self._model(torch.tensor([rows[place] for place in batch])).last_hidden_state
                vectors[batch] = hidden.mean(dim=1).double().numpy()
                start += len(batch)
                self._on_texts(len(batch))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors
