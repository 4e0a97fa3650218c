"""Text towers and tokenizers that come from Hugging Face's transformers.

The configuration of such a model names a text tower and a tokenizer, each as a path or as a repository of the hub. In a
folder, a relative path starts in the folder. A name that leads nowhere stands for the folder itself if the folder has
the files. A folder can therefore be moved, and used without a network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError

_TOWER_FILE = "config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class TextTower:
    """Text tower and tokenizer of a model, as open_clip's `text_cfg` describes them.

    `config` is that description, with paths in place of the names that a folder's own files stand for. `hub_names` are
    the names that are looked up in the hub's files, on this machine or over the network.
    """

    model: str
    config: dict[str, Any]
    hub_names: tuple[str, ...]

    @property
    def overrides(self) -> dict[str, Any]:
        """Arguments by which open_clip creates the model with this text tower, without weights from the hub."""
        if "hf_model_name" not in self.config:
            return {}
        return {"text_cfg": {**self.config, "hf_model_pretrained": False}}

    @property
    def hint(self) -> str:
        """End of an error text: what to do if the files of `hub_names` cannot be read. Empty for other models."""
        if not self.hub_names or not self.model.startswith("local-dir:"):
            return ""
        names = " and ".join(dict.fromkeys(self.hub_names))
        return (
            f". Its text tower is made of files of {names}, which the folder lacks: copy {_TOWER_FILE}, "
            f"{_TOKENIZER_FILES[0]} and {_TOKENIZER_FILES[1]} from there into the folder"
        )

    def tokenizer(self) -> Any:
        """Return the model's tokenizer, as open_clip would; in a folder, from the resolved path."""
        import open_clip

        name = self.config.get("hf_tokenizer_name")
        if not name or not self.model.startswith("local-dir:"):
            return open_clip.get_tokenizer(self.model)
        return open_clip.tokenizer.HFTokenizer(
            name,
            context_length=self.config.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
            tokenizer_mode=self.config.get("tokenizer_mode"),
            **self.config.get("tokenizer_kwargs") or {},
        )


def find(model: str) -> TextTower:
    """Return the text tower of a model: a name of open_clip, or `local-dir:PATH`.

    Raises:
        ConfigurationError: if the tower needs transformers, which is not installed, or if the folder lacks its files.
    """
    import open_clip

    config = dict((open_clip.get_model_config(model) or {}).get("text_cfg") or {})
    names = [key for key in ("hf_model_name", "hf_tokenizer_name") if config.get(key)]
    if names:
        _require_transformers(model)
    if not model.startswith("local-dir:"):
        return TextTower(model, config, tuple(str(config[key]) for key in names))
    folder = Path(model.removeprefix("local-dir:"))
    files = {"hf_model_name": (_TOWER_FILE,), "hf_tokenizer_name": _TOKENIZER_FILES}
    found = {key: _path(folder, key, str(config[key]), files[key]) for key in names}
    config |= {key: str(path) for key, path in found.items() if path is not None}
    return TextTower(model, config, tuple(str(config[key]) for key, path in found.items() if path is None))


def _path(folder: Path, key: str, name: str, files: tuple[str, ...]) -> Path | None:
    """Return the folder that a name in a folder's configuration stands for; None if it names a repository of the hub.

    Raises ConfigurationError if the name is a path, and neither that path nor the folder has one of the files.
    """
    for path in (folder / Path(name).expanduser(), folder):
        if any(_is_transformers_file(path / file) for file in files):
            return path.resolve()
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise ConfigurationError(
            f"REELSRS_MODEL: open_clip_config.json in {folder} names {name} as `{key}`, but there is no "
            f"{' or '.join(files)} in it or in {folder}; copy these files of the text tower into {folder}"
        )
    return None


def _is_transformers_file(path: Path) -> bool:
    """Return whether a file exists and, if it describes a model, describes one of transformers.

    Other libraries name their files `config.json` too.
    """
    if not path.is_file():
        return False
    if path.name != _TOWER_FILE:
        return True
    try:
        return "model_type" in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _require_transformers(model: str) -> None:
    """Raise ConfigurationError if transformers is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigurationError(
            f"REELSRS_MODEL: the text tower or the tokenizer of {model.removeprefix('local-dir:')} comes from "
            'transformers, which is not installed; run pip install "reelsrs[transformers]"'
        ) from error
    assert transformers is not None
