"""Random words: texts that say nothing of a library, to compare queries with."""

from __future__ import annotations

import random
import re

_MIN_LETTERS = 4
_SEED = 0


def random_words(count: int) -> list[str]:
    """Return `count` different English words of CLIP's vocabulary, which are the same everywhere."""
    import open_clip

    tokens = open_clip.SimpleTokenizer().decoder.values()
    whole = sorted(
        token.removesuffix("</w>") for token in tokens if re.fullmatch(rf"[a-z]{{{_MIN_LETTERS},}}</w>", token)
    )
    return random.Random(_SEED).sample(whole, count)  # noqa: S311  (nothing secret)
