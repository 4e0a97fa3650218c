"""Texts that the starter model learns from: what its classes are, definitions of things, and made-up captions.

The texts are the same on every machine and in every version of Python.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from service.embedding.starter import inputs

_CAPTIONS = 6000
_DEFINITIONS = 8000
_SEED = 1

_PEOPLE = (
    "a man", "a woman", "a child", "a boy", "a girl", "a person", "people", "a crowd", "a couple", "a baby",
    "two men", "three women", "children", "friends", "an old man", "a young woman",
)  # fmt: skip
_ANIMALS = ("a dog", "a cat", "a horse", "a bird", "a fish", "a bear", "a cow", "a monkey", "an elephant", "two dogs")
_VEHICLES = ("a car", "a boat", "a train", "a plane", "a bus", "a truck", "a bicycle", "a motorcycle", "a rocket")
_ACTIONS = (
    "walks", "runs", "sits", "stands", "jumps", "plays", "swims", "flies", "eats", "drives", "rides", "talks",
    "dances", "cooks", "sleeps", "throws a ball", "climbs", "sings", "reads", "is walking",
    "is talking to the camera", "is running", "is cooking", "is playing", "moves", "turns", "looks up", "waves",
    "smiles", "works", "falls", "waits",
)  # fmt: skip
_DRIVING = ("drives", "passes", "stops", "turns", "moves fast", "waits", "is parked", "arrives", "leaves", "is driving")
_PLACES = (
    "beach", "forest", "street", "kitchen", "park", "field", "lake", "mountain", "city", "room", "stage", "road",
    "garden", "river", "table", "office", "pool", "gym", "sea", "desert", "bridge", "house", "school", "shop",
    "studio", "stadium", "station", "sky", "snow", "grass", "water", "floor", "wall", "window", "tree", "market",
    "restaurant", "track",
)  # fmt: skip
_BETWEEN = ("in", "on", "near", "across", "over", "through", "beside", "behind", "under", "along", "above")
_LOOKS = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "grey", "orange", "pink", "small", "large",
    "old", "young", "bright", "dark", "wooden", "wet", "silver", "tall", "golden", "colourful",
)  # fmt: skip
_VIEWS = (
    "a close-up of", "a view of", "an aerial view of", "a video of", "footage of", "a black-and-white film of",
    "two", "several", "a photo of", "a drawing of", "an animation of", "slow motion of",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Texts to learn from.

    Attributes:
        classes: one tuple for each of the 1000 classes: texts that say what the class is.
        others: definitions of other things, and captions.
    """

    classes: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]


def read() -> Corpus:
    """Read the texts from the packages, and make up the captions."""
    synsets = inputs.find(inputs.SYNSETS).read_text(encoding="utf-8").split()
    lemmas, definitions = _table(inputs.LEMMAS), _table(inputs.DEFINITIONS)
    names = json.loads(inputs.find(inputs.CLASS_NAMES).read_text(encoding="utf-8"))
    described = json.loads(inputs.find(inputs.CLASS_DESCRIPTIONS).read_text(encoding="utf-8"))
    classes = []
    for number, synset in enumerate(synsets):
        looks = described.get(str(number), {}).get("description", definitions[synset]).split(". ")[0]
        classes.append(
            (f"a photo of a {names[number]}", f"{lemmas[synset]}: {definitions[synset]}", f"{names[number]}: {looks}")
        )
    known = set(synsets)
    rest = [f"{lemmas[one]}: {text}" for one, text in sorted(definitions.items()) if one not in known and one in lemmas]
    draw = _Draw(_SEED)
    captions = [_caption(draw, names) for _ in range(_CAPTIONS)]
    return Corpus(tuple(classes), (*captions, *(draw.one_of(rest) for _ in range(_DEFINITIONS))))


def _table(name: str) -> dict[str, str]:
    """Read a file of lines `key TAB value`."""
    lines = inputs.find(name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines)


class _Draw:
    """Random choices. Of Python's generator, only `random` is promised to stay the same between versions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def one_of(self, items: Sequence[str]) -> str:
        return items[int(self._random.random() * len(items))]

    def chance(self, share: float) -> bool:
        return self._random.random() < share


def _caption(draw: _Draw, things: Sequence[str]) -> str:
    """Make up a caption as people write it: who does what where, or a thing and where it is."""
    thing = f"{draw.one_of(_LOOKS)} {draw.one_of(things)}" if draw.chance(0.4) else draw.one_of(things)
    place = f"{draw.one_of(_BETWEEN)} {draw.one_of(('a', 'the'))} {draw.one_of(_PLACES)}"
    kind = draw.one_of(("thing", "thing", "person", "person", "animal", "vehicle", "holding", "view", "view"))
    if kind == "thing":
        return f"a {thing} {place}"
    if kind == "person":
        return f"{draw.one_of(_PEOPLE)} {draw.one_of(_ACTIONS)} {place}"
    if kind == "animal":
        return f"{draw.one_of(_ANIMALS)} {draw.one_of(_ACTIONS)} {place}"
    if kind == "vehicle":
        return f"{draw.one_of(_VEHICLES)} {draw.one_of(_DRIVING)} {place}"
    if kind == "holding":
        return f"{draw.one_of(_PEOPLE)} with a {thing} {place}"
    return f"{draw.one_of(_VIEWS)} {thing if draw.chance(0.6) else draw.one_of(_PLACES)}"
