"""A small CLIP trained on drawn clips, in open_clip's folder format: for the demo and tests only.

Knows where its folder is and which captions it has never seen. Knows nothing of how it is trained or
measured, and imports neither torch nor open_clip.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OPEN_CLIP_NAME = f"local-dir:{FOLDER}"
_HELD_OUT_SHARE = 8


def is_held_out(caption: str) -> bool:
    """Whether training leaves this caption out: one in eight, decided by the caption's hash alone."""
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0
