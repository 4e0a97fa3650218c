"""A small CLIP model trained on synthetic clips, in open_clip's folder format: for the demo and tests only.

This module states the model's folder and the captions that training leaves out. It imports neither torch nor open_clip.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OPEN_CLIP_NAME = f"local-dir:{FOLDER}"
_HELD_OUT_SHARE = 8


def is_held_out(caption: str) -> bool:
    """Return whether training leaves this caption out.

    One caption in eight is left out, decided by its hash alone.
    """
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0
