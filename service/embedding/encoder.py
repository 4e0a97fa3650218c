"""CLIP: pictures and captions to unit vectors (open_clip, torch). Knows no file of a clip and no row.

Device and precision are chosen in `choose_device`, which says why. What anything but torch's single precision on the
CPU makes of a few pictures and words is compared with that before it is trusted. How many pictures make a good batch is
found by trying, and one that does not fit into the device's memory is halved until it does. Captions longer than the
model's context are cut into windows of whole words, and the windows' vectors are averaged by their number of tokens:
nothing that was written is dropped.
"""

from __future__ import annotations

import gc
import hashlib
import io
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import structlog

from service.embedding import openvino_towers
from service.errors import ConfigurationError, Unavailable
from service.models import Generation, Picture, Vectors
from service.vectors import normalise

if TYPE_CHECKING:
    import torch
from service.embedding.towers import Tower, by_torch, split, traced

log = structlog.get_logger(__name__)
BATCH = 32
_MOST = 1024


class Encoder:
    """One loaded model. Safe to call from several threads: calls take turns.

    `generation` is the identity of what it makes; `picture` is what its picture tower wants, and `sees` whether it
    has one. `batch` is the number of pictures to bring at a time, if so many are at hand.

    Raises ConfigurationError where the towers do not do what torch's single precision does on the CPU.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        device: str,
        precision: str,
        pictures: bool = True,
        keep: Path | None = None,
    ) -> None:
        import torch

        settings = dict(model.visual.preprocess_cfg)
        self.picture = _picture(settings)
        self.sees = pictures
        self.batch = BATCH
        self._tokenizer = tokenizer
        self.context_length = int(tokenizer.context_length)
        self._lock = threading.Lock()
        self.device = device
        """Where the model runs, as torch writes it, or `openvino`."""
        fitted_to = openvino_towers.calibration()[2] if precision == "int8" else ""
        identity = f"g{_fingerprint(model.state_dict(), settings, precision + fitted_to)[:16]}"
        if not pictures:
            model.visual = None  # searches by words need only the text tower
        see, read = split(model, settings)
        self.picture_tower: Tower = partial(by_torch, see, "cpu")
        self.text_tower: Tower = partial(by_torch, read, "cpu")
        golden = [] if (device, precision) == ("cpu", "float32") else self._golden()
        if device == "openvino":
            self._compile(see, read, precision, keep / identity if keep else None)
        elif golden:
            layout = torch.channels_last if device.startswith("cuda") else torch.preserve_format
            model.to(device=device, dtype=getattr(torch, precision), memory_format=layout)
            self.picture_tower, self.text_tower = (partial(by_torch, tower.to(device), device) for tower in (see, read))
        if golden:
            self._compare(golden, precision)
            del see, read, golden
            gc.collect()  # torch's towers, where others are in their place
        if device.startswith("cuda") and pictures:
            self.batch = self.best_batch()
        width = self.embed_texts(["warm up"]).shape[1]
        self.generation = Generation(id=identity, model=name, dimension=width, precision=precision)

    def embed_pictures(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """(N, D) float32 unit vectors of (N, H, W, 3) uint8 pictures of the size `picture`."""
        return self._run(self.picture_tower, np.ascontiguousarray(pixels))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float32 unit vectors of N captions of any length, with no template added."""
        windows = [self.windows(text) for text in texts]
        flat = [window for parts in windows for window, _ in parts]
        vectors = iter(self._run(self.text_tower, self._tokens(flat)))
        sums = [np.sum([next(vectors).astype(np.float64) * tokens for _, tokens in parts], axis=0) for parts in windows]
        return normalise(np.stack(sums))

    def _run(self, tower: Tower, inputs: npt.NDArray[Any]) -> Vectors:
        """(N, D) unit vectors, a batch at a time. Raises Unavailable where the model fails, or memory does."""
        try:
            return self._towered(tower, inputs)
        except (RuntimeError, MemoryError) as error:
            raise Unavailable(f"the model failed: {str(error) or type(error).__name__}") from error

    def _towered(self, tower: Tower, inputs: npt.NDArray[Any]) -> Vectors:
        import torch

        start, done = 0, []
        with self._lock, torch.inference_mode():
            while start < len(inputs):
                part = inputs[start : start + self.batch]
                try:
                    done.append(tower(part))
                    start += len(part)
                except torch.OutOfMemoryError:
                    if self.batch == 1:
                        raise
                    self.batch = max(1, self.batch // 2)  # for good: the next would not fit either
                    log.warning("out of memory on the device, the batch is halved", batch=self.batch)
                    torch.cuda.empty_cache()
            # Fetched only now, so that no batch waits for the last one to come back.
            vectors = [part if isinstance(part, np.ndarray) else part.float().cpu().numpy() for part in done]
        return normalise(np.concatenate(vectors))

    def _compile(self, see: Any, read: Any, precision: str, keep: Path | None) -> None:
        pictures, tokens = (every[: -openvino_towers.HELD] for every in self.examples())
        make = partial(openvino_towers.tower, int8=precision == "int8", keep=keep)
        self.text_tower = make(partial(traced, read, tokens), tokens, name="text")
        if self.sees:
            self.picture_tower = make(partial(traced, see, pictures), pictures, name="picture")

    def examples(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """(N, H, W, 3) pictures and (N, context) tokens of captions, those to compare with last."""
        from PIL import Image, ImageOps

        files, captions, _ = openvino_towers.calibration()
        size = (self.picture.width, self.picture.height)
        fitted = [np.asarray(ImageOps.fit(Image.open(io.BytesIO(file)), size)) for file in files]
        return np.stack(fitted), self._tokens(list(captions))

    def _tokens(self, texts: list[str]) -> npt.NDArray[np.int64]:
        tokens: npt.NDArray[np.int64] = self._tokenizer(texts).numpy()
        return tokens

    def _golden(self) -> list[Vectors]:
        """(8, D) unit vectors of pictures, if it sees, and of words that it was not fitted to."""
        pictures, tokens = (every[-openvino_towers.HELD :] for every in self.examples())
        towers = (
            [(self.picture_tower, pictures), (self.text_tower, tokens)] if self.sees else [(self.text_tower, tokens)]
        )
        return [self._run(tower, inputs) for tower, inputs in towers]

    def _compare(self, golden: list[Vectors], precision: str) -> None:
        """Raises ConfigurationError where a vector has turned away from the golden one of the same input."""
        least = 0.9999 if precision == "float32" else 0.99
        pairs = zip(golden, self._golden(), strict=True)
        cosine = float(np.min([(one * other).sum(axis=1) for one, other in pairs]))
        if not cosine >= least:  # a number that is none fails too
            raise ConfigurationError(
                f"{self.device} with REELSRS_PRECISION={precision} embeds wrongly here: its vectors have a cosine of "
                f"{cosine:.4f} to those of torch's float32 on the CPU, where {least} is the least. Set "
                "REELSRS_PRECISION=float32, or REELSRS_DEVICE=cpu"
            )
        log.info("the model agrees with torch's float32 on the CPU", cosine=round(cosine, 5), least=least)

    def best_batch(self) -> int:
        """How many pictures at a time go through fastest: twice as many, as long as that gains anything."""
        rate, size = 0.0, BATCH
        blank = np.zeros((_MOST, self.picture.height, self.picture.width, 3), dtype=np.uint8)
        while size <= _MOST:
            self.batch = size
            self._run(self.picture_tower, blank[:size])  # the first one of a size is slow
            if self.batch < size:
                return self.batch  # it did not fit
            started = time.perf_counter()
            self._run(self.picture_tower, blank[:size])
            faster = size / (time.perf_counter() - started)
            if faster < 1.05 * rate:
                break
            rate, size = faster, size * 2
        log.info("the batch that goes through fastest was found", batch=size // 2, pictures_per_second=round(rate))
        return size // 2

    def windows(self, text: str) -> list[tuple[str, int]]:
        """The text in windows that fit the context, each with its number of tokens; at least one window."""
        room = self.context_length - 2  # the start and the end token
        windows: list[tuple[list[str], int]] = [([], 0)]
        for word, tokens in self._words(text, room):
            words, used = windows[-1]
            if used + tokens > room and words:
                windows.append(([word], tokens))
            else:
                windows[-1] = ([*words, word], used + tokens)
        return [(" ".join(words), max(1, tokens)) for words, tokens in windows]

    def _words(self, text: str, room: int) -> Iterator[tuple[str, int]]:
        for word in text.split():
            # A "word" of a thousand letters is cut into pieces that fit; a token has at least one byte.
            count = self.count_tokens(word)
            if count <= room:
                yield word, count
                continue
            step = max(1, len(word) * room // count // 2)
            for start in range(0, len(word), step):
                piece = word[start : start + step]
                yield piece, min(room, self.count_tokens(piece))

    def count_tokens(self, word: str) -> int:
        """Return how many tokens a text has, without the start and the end token."""
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(word))
        return len(self._tokenizer.tokenizer(word, add_special_tokens=False)["input_ids"])


def _picture(settings: dict[str, Any]) -> Picture:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return Picture(
        height=height,
        width=width,
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        resize_mode=settings.get("resize_mode") or "shortest",
        fill_color=int(settings.get("fill_color") or 0),
    )


def _fingerprint(weights: dict[str, torch.Tensor], preprocessing: dict[str, Any], precision: str) -> str:
    """What makes two embeddings comparable: every weight, the preprocessing and the precision."""
    digest = hashlib.sha256(repr((sorted(preprocessing.items(), key=str), precision)).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()
