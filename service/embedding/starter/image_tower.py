"""Image tower of the starter model: a classifier of ImageNet's classes, whose scores weight the vectors of the classes.

The method is ConSE (Norouzi et al., 2014: Zero-Shot Learning by Convex Combination of Semantic Embeddings), with a
threshold in place of the softmax. In this form, open_clip's `mlp` projection of a timm trunk computes it: its first
layer is the classifier, its activation (GELU) the threshold, its second layer holds the vectors of the classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.embedding.starter import inputs
from service.errors import ModelUnavailable

if TYPE_CHECKING:
    import torch

TRUNK = "tf_efficientnet_lite2"
_IMAGE_PIXELS = 260  # the size that the classifier was trained for
_SHARPNESS = 2.0
"""Factor of the scores before GELU: the larger, the nearer GELU is to a threshold that cuts everything below it."""
_THRESHOLD = 1.0
"""Score below which a class counts for nothing."""

PREPROCESSING: dict[str, Any] = {
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",  # the whole frame is seen, as in no crop
}


def config() -> dict[str, Any]:
    """Return open_clip's `vision_cfg` of this tower."""
    return {
        "timm_model_name": TRUNK,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "timm_proj_bias": True,
        "image_size": _IMAGE_PIXELS,
    }


def state(class_vectors: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
    """Return the weights of this tower by open_clip's names, without the prefix `visual.`.

    Args:
        class_vectors: (1000, D) unit vectors of what the classes mean, D at most `width`.
        width: dimension of the model's vectors. The projection has twice as many hidden units, at least one a class.
    """
    import torch

    weights = _classifier_weights()
    scores, biases = weights.pop("classifier.weight"), weights.pop("classifier.bias")
    classes, dimension = class_vectors.shape
    first, first_bias = torch.zeros(2 * width, scores.shape[1]), torch.zeros(2 * width)
    first[:classes] = _SHARPNESS * scores
    first_bias[:classes] = _SHARPNESS * (biases - _THRESHOLD)
    second = torch.zeros(width, 2 * width)
    second[:dimension, :classes] = class_vectors.T
    return {f"trunk.{name}": tensor for name, tensor in weights.items()} | {
        "head.mlp.fc1.weight": first,
        "head.mlp.fc1.bias": first_bias,
        "head.mlp.fc2.weight": second,
        "head.mlp.fc2.bias": torch.zeros(width),
    }


def _classifier_weights() -> dict[str, torch.Tensor]:
    """Return the weights of the classifier by timm's names. Raises ModelUnavailable if the shapes differ.

    The file names the layers otherwise than timm, but has them in the same order.
    """
    import timm
    import torch

    path: Path = inputs.find(inputs.IMAGE_WEIGHTS)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    given = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    weights: dict[str, torch.Tensor] = timm.create_model(TRUNK, pretrained=False).state_dict()
    names = [name for name in weights if not name.endswith("num_batches_tracked")]
    if [weights[name].shape for name in names] != [tensor.shape for tensor in given]:
        raise ModelUnavailable(f"the model starter cannot be made: {path.name} is not a {TRUNK} of the installed timm")
    return weights | dict(zip(names, given, strict=True))
