"""CLIP encoder: images and captions to unit vectors (open_clip, torch).

`choose_device` chooses device and precision, and gives the reason. Any choice but float32 on the CPU by torch is
compared with that on a few images and captions before it is used. On CUDA the fastest batch size is measured. A batch
that does not fit into the device's memory is halved until it fits.

Captions longer than the model's context are cut into windows of whole words. The windows' vectors are averaged,
weighted by their numbers of tokens, so no text is dropped.
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
from service.models import Generation, ImageSpec, Vectors
from service.vectors import normalise

if TYPE_CHECKING:
    import torch
from service.embedding.towers import Tower, merge_branches, run_torch, split, trace

log = structlog.get_logger(__name__)
BATCH = 32
_MAX_BATCH = 1024


class Encoder:
    """A loaded model. Thread-safe: the towers run for one call at a time.

    Towers compiled by OpenVINO are kept below the folder `cache_dir`, if given. In the identity of the vectors,
    `weights_digest` stands for the weights, if their bytes differ between machines without a difference in meaning.

    Attributes:
        generation: the identity of the vectors that this encoder makes.
        image_spec: size and preprocessing of the images that the image tower expects.
        has_image_tower: whether the image tower is loaded.
        batch: number of images to pass at a time, if so many are available.

    Raises:
        ConfigurationError: if the vectors differ from those of float32 on the CPU by torch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        device: str,
        precision: str,
        has_image_tower: bool = True,
        cache_dir: Path | None = None,
        weights_digest: str | None = None,
    ) -> None:
        import torch

        settings = dict(model.visual.preprocess_cfg)
        self.image_spec = _image_spec(settings)
        self.has_image_tower = has_image_tower
        self.batch = BATCH
        self._tokenizer = tokenizer
        self.context_length = int(tokenizer.context_length)
        self._room = self.context_length - _special_tokens(tokenizer)
        self._lock = threading.Lock()
        self.device = device
        """Device of the model, as torch names it, or `openvino`."""
        identity = _identity(weights_digest or model.state_dict(), settings, precision)
        if has_image_tower:
            merge_branches(model)
        else:
            model.visual = None  # text search needs only the text tower
        image_module, text_module = split(model, settings)
        self.image_tower: Tower = partial(run_torch, image_module, "cpu")
        self.text_tower: Tower = partial(run_torch, text_module, "cpu")
        reference = [] if (device, precision) == ("cpu", "float32") else self._reference_vectors()
        if device == "openvino":
            self._compile(image_module, text_module, precision, cache_dir / identity if cache_dir else None)
        elif reference:
            layout = torch.channels_last if device.startswith("cuda") else torch.preserve_format
            model.to(device=device, dtype=getattr(torch, precision), memory_format=layout)
            self.image_tower, self.text_tower = (
                partial(run_torch, tower.to(device), device) for tower in (image_module, text_module)
            )
        if reference:
            self._compare(reference, precision)
            del image_module, text_module, reference
            gc.collect()  # free torch's towers if others replaced them
        if device.startswith("cuda") and has_image_tower:
            self.batch = self.best_batch()
        width = self.embed_texts(["warm up"]).shape[1]
        self.generation = Generation(id=identity, model=name, dimension=width, precision=precision)

    def embed_images(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """Return (N, D) float32 unit vectors of (N, H, W, 3) uint8 images of the size `image_spec`.

        Raises Unavailable if the model fails or memory runs out.
        """
        return self._run(self.image_tower, np.ascontiguousarray(pixels))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return (N, D) float32 unit vectors of N texts of any length, without a prompt template.

        Raises Unavailable if the model fails or memory runs out.
        """
        windows = [self.windows(text) for text in texts]
        flat = [window for parts in windows for window, _ in parts]
        vectors = iter(self._run(self.text_tower, self._tokens(flat)))
        sums = [np.sum([next(vectors).astype(np.float64) * tokens for _, tokens in parts], axis=0) for parts in windows]
        return normalise(np.stack(sums))

    def _run(self, tower: Tower, inputs: npt.NDArray[Any]) -> Vectors:
        """Return (N, D) float32 unit vectors, computed batch by batch.

        Raises Unavailable if the model fails or memory runs out.
        """
        try:
            return self._run_batches(tower, inputs)
        except (RuntimeError, MemoryError) as error:
            raise Unavailable(f"the model failed: {str(error) or type(error).__name__}") from error

    def _run_batches(self, tower: Tower, inputs: npt.NDArray[Any]) -> Vectors:
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
                    self.batch = max(1, self.batch // 2)  # permanent: the next batch would not fit either
                    log.warning("out of memory; batch size halved", batch=self.batch)
                    torch.cuda.empty_cache()
            # Copied from the device only now, so that no batch waits for the copy of the previous one.
            vectors = [part if isinstance(part, np.ndarray) else part.float().cpu().numpy() for part in done]
        return normalise(np.concatenate(vectors))

    def _compile(self, image_module: Any, text_module: Any, precision: str, cache_dir: Path | None) -> None:
        """Replace the towers by towers compiled by OpenVINO."""
        images, tokens = (every[: -openvino_towers.HELD_OUT_COUNT] for every in self.examples())
        make = partial(openvino_towers.tower, int8=precision == "int8", cache_dir=cache_dir)
        self.text_tower = make(partial(trace, text_module, tokens), tokens, name="text")
        if self.has_image_tower:
            self.image_tower = make(partial(trace, image_module, images), images, name="picture")

    def examples(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return example inputs: (N, H, W, 3) uint8 images, and (N, context) int64 tokens of captions.

        The last `openvino_towers.HELD_OUT_COUNT` of each are for comparison, the others for calibration.
        """
        from PIL import Image, ImageOps

        files, captions, _ = openvino_towers.calibration()
        size = (self.image_spec.width, self.image_spec.height)
        fitted = [np.asarray(ImageOps.fit(Image.open(io.BytesIO(file)), size)) for file in files]
        return np.stack(fitted), self._tokens(list(captions))

    def _tokens(self, texts: list[str]) -> npt.NDArray[np.int64]:
        tokens: npt.NDArray[np.int64] = self._tokenizer(texts).numpy()
        return tokens

    def _reference_vectors(self) -> list[Vectors]:
        """Return (8, D) unit vectors of images and of captions that are not used for calibration.

        Without an image tower there are only those of captions.
        """
        images, tokens = (every[-openvino_towers.HELD_OUT_COUNT :] for every in self.examples())
        towers = (
            [(self.image_tower, images), (self.text_tower, tokens)]
            if self.has_image_tower
            else [(self.text_tower, tokens)]
        )
        return [self._run(tower, inputs) for tower, inputs in towers]

    def _compare(self, reference: list[Vectors], precision: str) -> None:
        """Compare the vectors of the present towers with `reference`, those of the same inputs.

        Raises ConfigurationError if the least cosine is below 0.9999 for float32, or below 0.99 for other precisions.
        """
        least = 0.9999 if precision == "float32" else 0.99
        pairs = zip(reference, self._reference_vectors(), strict=True)
        cosine = float(np.min([(one * other).sum(axis=1) for one, other in pairs]))
        if not cosine >= least:  # NaN fails too
            raise ConfigurationError(
                f"{self.device} with REELSRS_PRECISION={precision} computes wrong vectors here: their cosine to "
                f"those of torch in float32 on the CPU is {cosine:.4f}, but must be at least {least}. Set "
                "REELSRS_PRECISION=float32, or REELSRS_DEVICE=cpu"
            )
        log.info("model verified against the reference", cosine=round(cosine, 5), least=least)

    def best_batch(self) -> int:
        """Measure the batch size with the highest throughput of images.

        The size is doubled, from 32 to at most 1024, as long as that is at least 5 % faster and memory suffices.
        """
        rate, size = 0.0, BATCH
        blank = np.zeros((_MAX_BATCH, self.image_spec.height, self.image_spec.width, 3), dtype=np.uint8)
        while size <= _MAX_BATCH:
            self.batch = size
            self._run(self.image_tower, blank[:size])  # the first run of a size is slow
            if self.batch < size:
                return self.batch  # out of memory
            started = time.perf_counter()
            self._run(self.image_tower, blank[:size])
            faster = size / (time.perf_counter() - started)
            if faster < 1.05 * rate:
                break
            rate, size = faster, size * 2
        log.info("batch size selected", batch=size // 2, images_per_second=round(rate))
        return size // 2

    def windows(self, text: str) -> list[tuple[str, int]]:
        """Split a text into windows that fit the context, each with its number of tokens.

        There is at least one window.
        """
        room = self._room
        windows: list[tuple[list[str], int]] = [([], 0)]
        for word, tokens in self._words(text, room):
            words, used = windows[-1]
            if used + tokens > room and words:
                windows.append(([word], tokens))
            else:
                windows[-1] = ([*words, word], used + tokens)
        return [fitted for words, tokens in windows for fitted in self._fitted(words, tokens)]

    def _fitted(self, words: list[str], tokens: int) -> Iterator[tuple[str, int]]:
        """Yield words as one window, or in halves if they have more tokens together than one by one.

        Some tokenizers count the space before a word, which is missing before the first word of a text.
        """
        text = " ".join(words)
        if len(words) < 2 or self.count_tokens(text) <= self._room:
            yield text, max(1, tokens)
            return
        for half in (words[: len(words) // 2], words[len(words) // 2 :]):
            yield from self._fitted(half, sum(self.count_tokens(word) for word in half))

    def _words(self, text: str, room: int) -> Iterator[tuple[str, int]]:
        """Yield the words of a text with their numbers of tokens, in pieces of at most `room` tokens."""
        for word in text.split():
            # A "word" of a thousand letters is cut into pieces that fit. A token has at least one byte.
            count = self.count_tokens(word)
            if count <= room:
                yield word, count
                continue
            step = max(1, len(word) * room // count // 2)
            for start in range(0, len(word), step):
                piece = word[start : start + step]
                yield piece, min(room, self.count_tokens(piece))

    def count_tokens(self, word: str) -> int:
        """Return the number of tokens of a text, without the start and the end token."""
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(word))
        # Cleaning can change the number of tokens: it may make capitals small and remove punctuation.
        cleaned = self._tokenizer.clean_fn(word)
        return len(self._tokenizer.tokenizer(cleaned, add_special_tokens=False)["input_ids"])


def _special_tokens(tokenizer: Any) -> int:
    """Return how many tokens a tokenizer may add to a text: at least a start and an end token."""
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        return 3  # and a class token
    count = getattr(getattr(tokenizer, "tokenizer", None), "num_special_tokens_to_add", None)
    return max(2, count() if count is not None else 0)


def _image_spec(settings: dict[str, Any]) -> ImageSpec:
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return ImageSpec(
        height=height,
        width=width,
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        resize_mode=settings.get("resize_mode") or "shortest",
        fill_color=int(settings.get("fill_color") or 0),
    )


def _identity(weights: dict[str, torch.Tensor] | str, preprocessing: dict[str, Any], precision: str) -> str:
    """Return the id of the generation: a digest of the weights, or of what stands for them, preprocessing, precision.

    Embeddings are comparable only if these are equal. For int8, the images that calibrate it count, too.
    """
    calibration = openvino_towers.calibration()[2] if precision == "int8" else ""
    digest = hashlib.sha256(repr((sorted(preprocessing.items(), key=str), precision + calibration)).encode())
    if isinstance(weights, str):
        digest.update(weights.encode())
    else:
        for name in sorted(weights):
            tensor = weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.reshape(-1).numpy().data)
    return f"g{digest.hexdigest()[:16]}"
