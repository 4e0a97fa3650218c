"""How a model is found, and read, by its name."""

from __future__ import annotations

import difflib
import logging
import socket
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

import structlog

from service.embedding.devices import choose_device
from service.embedding.encoder import Encoder
from service.errors import ConfigurationError, ModelUnavailable

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP

log = structlog.get_logger(__name__)


TINY = Path(__file__).parent / "tiny"


def load(
    model: str, *, device: str = "auto", precision: str = "auto", pictures: bool = True, keep: Path | None = None
) -> Encoder:
    """The model that a setting names: `NAME/PRETRAINED` from the hub, `local-dir:PATH`, or `tiny`.

    `pictures` False keeps the text tower only; compiled towers are kept in the folder `keep`. Raises
    ConfigurationError for a name that does not exist, or a device or precision that cannot be had or that computes
    wrongly here, ModelUnavailable where the weights cannot be had.
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
                load_weights=False,
                pretrained_text=False,
                device="cpu",
                # OpenAI's weights were trained with another activation than the configuration of that name says.
                force_quick_gelu=bool(pretrained and open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu")),
            )
            _load_weights(loaded, _weights_of(name, pretrained))
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # the hub, the network, the disk and torch each raise their own
            reason = offline or (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelUnavailable(_cannot_load(name, pretrained, reason)) from error
        finally:
            root.setLevel(level)
    loaded.float()  # weights that were stored in half precision; the others stay where they are
    try:
        return Encoder(loaded, tokenizer, name=model, device=chosen, precision=precision, pictures=pictures, keep=keep)
    except ConfigurationError as error:
        if chosen != "mps":
            raise
        # Some releases of torch compute wrongly there, and nobody chose it but this program.
        log.exception("Metal is not used, the CPU is", because=str(error))
        return load(model, device="cpu", precision="float32", pictures=pictures)


def _load_weights(model: CLIP | CustomTextCLIP, path: str) -> None:
    """Read a checkpoint. Weights stay in their file, mapped into memory, instead of being copied over random ones: half
    of the memory and of the time, and what is not used, as the picture tower where only words are embedded, need not
    be in memory.

    open_clip has no option for it, so this one model's method is given another default meanwhile.
    """
    import open_clip

    # Past nn.Module, which takes only parameters and modules to be anything.
    model.__dict__["load_state_dict"] = partial(model.load_state_dict, assign=True)
    try:
        open_clip.load_checkpoint(model, path)
    finally:
        del model.__dict__["load_state_dict"]


def _weights_of(name: str, pretrained: str | None) -> str:
    """The file of a model's weights, downloaded if it is not there yet; in a folder, as open_clip looks for it."""
    import open_clip

    if pretrained is not None:
        return str(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))
    folder = Path(name.removeprefix("local-dir:"))
    for pattern in ("open_clip_*", "model", "pytorch_model", "*"):
        for suffix in ("safetensors", "bin", "pth"):
            if found := sorted(folder.glob(f"{pattern}.{suffix}")):
                return str(found[0])
    raise FileNotFoundError(f"no weights in {folder}: neither *.safetensors nor *.bin nor *.pth")


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
