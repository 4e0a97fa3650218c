"""Small CLIP models with random weights, saved the way a user saves a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# A vision transformer small enough to be quantised in seconds. Its text tower takes CLIP's own tokens.
SMALL_VIT: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 192, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}


def small_vit(folder: Path, seed: int) -> str:
    """Write a small CLIP model with random weights in open_clip's folder format; return its REELSRS_MODEL value."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.CLIP(**SMALL_VIT)
    preprocessing = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    config = {"model_cfg": SMALL_VIT, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
