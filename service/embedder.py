"""CLIP: pictures and captions to unit vectors (open_clip, torch). Knows no file of a clip and no row.

Device and precision are chosen in `choose_device`, which says why. A batch that does not fit into the device's
memory is halved until it does. Captions longer than the model's context are cut into windows of whole words, and
the windows' vectors are averaged by their number of tokens: nothing that was written is dropped.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import numpy.typing as npt
import structlog

from service.domain import Generation, Picture, Vectors
from service.errors import ConfigurationError, ModelUnavailable
from service.vectors import normalise

if TYPE_CHECKING:
    import torch

log = structlog.get_logger(__name__)

TINY = Path(__file__).parent / "tiny"
BATCH = 32


class Embedder:
    """One loaded model. Safe to call from several threads: calls take turns.

    `generation` is the identity of what it makes; `picture` is what its picture tower wants, and `sees` whether it
    has one.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, device: str, precision: str, pictures: bool = True
    ) -> None:
        import torch

        settings = dict(model.visual.preprocess_cfg)
        self.picture = _picture(settings)
        self._torch_device = torch.device(device)
        self._dtype = getattr(torch, precision)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(settings["mean"], device=device).view(shape)
        self._std = torch.tensor(settings["std"], device=device).view(shape)
        self._tokenizer = tokenizer
        self._context_length = int(tokenizer.context_length)
        self._lock = threading.Lock()
        fingerprint = _fingerprint(model.state_dict(), settings, precision)
        self.sees = pictures
        if not pictures:
            model.visual = None  # searches by words need only the text tower
        self._model = model.eval().to(device=self._torch_device, dtype=self._dtype)
        width = self.embed_texts(["warm up"]).shape[1]  # the first forward pass is the slow one
        self.generation = Generation(id=f"g{fingerprint[:16]}", model=name, dimension=width, precision=precision)

    @property
    def device(self) -> str:
        """Where the model runs, as torch writes it."""
        return str(self._torch_device)

    def embed_pictures(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """(N, D) float32 unit vectors of (N, H, W, 3) uint8 pictures of the size `picture`."""
        import torch

        def forward(batch: torch.Tensor) -> torch.Tensor:
            scaled = batch.to(self._torch_device).permute(0, 3, 1, 2).float() / 255
            normalised = ((scaled - self._mean) / self._std).to(self._dtype)
            return self._model.encode_image(normalised)  # type: ignore[no-any-return]

        return self._run(forward, torch.from_numpy(np.ascontiguousarray(pixels)))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float32 unit vectors of N captions of any length, with no template added."""

        windows = [self._windows(text) for text in texts]
        flat = [window for parts in windows for window, _ in parts]

        def forward(batch: torch.Tensor) -> torch.Tensor:
            return self._model.encode_text(batch.to(self._torch_device))  # type: ignore[no-any-return]

        vectors = iter(self._run(forward, self._tokenizer(flat)))
        sums = [np.sum([next(vectors).astype(np.float64) * tokens for _, tokens in parts], axis=0) for parts in windows]
        return normalise(np.stack(sums))

    def _run(self, forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> Vectors:
        import torch

        size, start, done = BATCH, 0, []
        with self._lock, torch.inference_mode():
            while start < len(inputs):
                try:
                    done.append(forward(inputs[start : start + size]).float().cpu().numpy())
                    start += size
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    size = max(1, size // 2)
                    log.warning("out of memory on the device, the batch is halved", batch=size)
                    torch.cuda.empty_cache()
        return normalise(np.concatenate(done))

    def _windows(self, text: str) -> list[tuple[str, int]]:
        """The text in windows that fit the context, each with its number of tokens; at least one window."""
        room = self._context_length - 2  # the start and the end token
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
            count = self._count(word)
            if count <= room:
                yield word, count
                continue
            step = max(1, len(word) * room // count // 2)
            for start in range(0, len(word), step):
                piece = word[start : start + step]
                yield piece, min(room, self._count(piece))

    def _count(self, word: str) -> int:
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(word))
        return len(self._tokenizer.tokenizer(word, add_special_tokens=False)["input_ids"])


def load(model: str, *, device: str = "auto", precision: str = "auto", pictures: bool = True) -> Embedder:
    """The model that a setting names: `NAME/PRETRAINED` from the hub, `local-dir:PATH`, or `tiny`.

    `pictures` False keeps the text tower only. Raises ConfigurationError for a name that does not exist,
    ModelUnavailable where the weights cannot be had.
    """
    import open_clip

    chosen, precision, reason = choose_device(device, precision)
    log.info("loading the model", model=model, device=chosen, precision=precision, because=reason)
    if model == "tiny":
        log.warning("tiny is a small model for trying out and for tests: not for production")
    name, pretrained = _resolve(model)
    offline = pretrained is not None and _offline()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = logging.getLogger()  # where open_clip narrates what it does; its errors come out as exceptions
        level = root.level
        root.setLevel(logging.CRITICAL)
        try:
            loaded = open_clip.create_model(
                name,
                pretrained=pretrained,
                device="cpu",
                require_pretrained=True,
                # OpenAI's weights were trained with another activation than the configuration of that name says.
                force_quick_gelu=bool(pretrained and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu")),
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # the hub, the network, the disk and torch each raise their own
            reason = offline or (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelUnavailable(_cannot_load(name, pretrained, reason)) from error
        finally:
            root.setLevel(level)
    return Embedder(loaded, tokenizer, name=model, device=chosen, precision=precision, pictures=pictures)


def choose_device(device: str, precision: str) -> tuple[str, str, str]:
    """(device, precision, reason): `auto` takes CUDA, then MPS, then the CPU; half precision on CUDA.

    Raises ConfigurationError for a device that this machine does not have.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        chosen = "cuda" if cuda else "mps" if mps else "cpu"
        reason = {
            "cuda": "a CUDA device is there",
            "mps": "there is no CUDA device, but Apple's Metal is there",
            "cpu": "there is neither a CUDA device nor Apple's Metal",
        }[chosen]
    else:
        chosen, reason = device, "the setting says so"
        number = int(device.partition(":")[2] or 0)
        if device.startswith("cuda") and (not cuda or number >= torch.cuda.device_count()):
            raise ConfigurationError(f"REELSRS_DEVICE: {device} is not there; torch sees no such CUDA device")
        if device == "mps" and not mps:
            raise ConfigurationError("REELSRS_DEVICE: mps is not there; torch sees no Metal device")
    if precision == "auto":
        precision = "float16" if chosen.startswith("cuda") else "float32"
    return chosen, precision, reason


def _resolve(model: str) -> tuple[str, str | None]:
    import open_clip

    if model == "tiny":
        return f"local-dir:{TINY}", None
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:")).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ConfigurationError(f"REELSRS_MODEL: {folder} is not an open_clip folder: no open_clip_config.json")
        return f"local-dir:{folder}", None
    name, _, tag = model.partition("/")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 3)
        raise ConfigurationError(f"REELSRS_MODEL: open_clip has no model {name!r}; near: {', '.join(near) or '-'}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ConfigurationError(
            f"REELSRS_MODEL: {name} has no weights {tag!r}; write {name}/TAG with one of {', '.join(tags) or '-'}"
        )
    return name, tag


def _offline() -> str:
    """Why the hub is out of reach, empty where it may be in reach. Its client repeats every failed look-up for most
    of a minute, even for weights that are on disk: where its name cannot be resolved, it is told so."""
    import huggingface_hub
    from huggingface_hub import constants

    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if getproxies():
        return ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        constants.HF_HUB_OFFLINE = True
        return f"the name {host} cannot be resolved ({error.strerror}), and the weights are not on this machine"
    return ""


def _cannot_load(name: str, tag: str | None, reason: str) -> str:
    import open_clip

    if tag is None:
        return f"the model in {name.removeprefix('local-dir:')} cannot be loaded: {reason}"
    config = open_clip.get_pretrained_cfg(name, tag)
    source = f"huggingface.co/{config['hf_hub'].rstrip('/')}" if config.get("hf_hub") else config.get("url", "?")
    return (
        f"the weights {tag!r} of {name} cannot be had from {source}: {reason.rstrip('.')}. Three ways to get going: "
        f"(1) connect this machine to the network, or set HF_ENDPOINT to a mirror, and start again: the weights "
        f"are kept afterwards; (2) copy a folder with open_clip_config.json and open_clip_model.safetensors here "
        f"and set REELSRS_MODEL=local-dir:FOLDER; (3) to try ReelsRS out, set REELSRS_MODEL=tiny."
    )


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
