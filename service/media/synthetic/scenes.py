"""Describe what synthetic clips show, and write their captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = {
    "circle": "circles",
    "ring": "rings",
    "square": "squares",
    "triangle": "triangles",
    "diamond": "diamonds",
    "star": "stars",
    "heart": "hearts",
    "cross": "crosses",
    "moon": "moons",
    "flower": "flowers",
}
COLOURS = {
    "red": (232, 58, 62),
    "orange": (255, 140, 40),
    "yellow": (255, 214, 56),
    "green": (46, 178, 96),
    "blue": (48, 112, 236),
    "purple": (136, 76, 214),
    "pink": (255, 120, 182),
    "white": (250, 250, 252),
    "black": (34, 34, 44),
}
TINTS = {
    "red": (196, 74, 80),
    "orange": (240, 164, 96),
    "yellow": (246, 222, 130),
    "green": (126, 190, 138),
    "blue": (120, 170, 230),
    "purple": (164, 136, 214),
    "pink": (246, 184, 208),
    "grey": (178, 184, 196),
}
COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}
MOTIONS = {
    "still": "standing still",
    "left": "moving left",
    "right": "moving right",
    "rising": "rising up",
    "falling": "falling down",
    "spinning": "spinning",
    "growing": "growing",
    "circling": "going round in a circle",
}
CATEGORIES = {
    "studio": ("plain",),
    "pattern": ("striped", "checked", "dotted"),
    "sky": ("night", "clouds", "sunset"),
    "land": ("meadow", "desert", "snow"),
    "sea": ("waves", "undersea"),
    "town": ("bricks", "planks", "city"),
}
SETTINGS = {
    "plain": "on a plain {tint} background",
    "striped": "on a striped {tint} background",
    "checked": "on a checked {tint} background",
    "dotted": "on a dotted {tint} background",
    "night": "in a starry night sky",
    "clouds": "among the clouds",
    "sunset": "in front of a sunset",
    "meadow": "over a green meadow",
    "desert": "over desert dunes",
    "snow": "over snowy mountains",
    "waves": "on ocean waves",
    "undersea": "under the sea",
    "bricks": "in front of a brick wall",
    "planks": "on a wooden floor",
    "city": "above a city at night",
}
TINTED = frozenset({"plain", "striped", "checked", "dotted"})
_CATEGORY_OF = {setting: category for category, settings in CATEGORIES.items() for setting in settings}
# A shape in the colour of its setting would hardly be visible.
_CLASHES = {
    "night": {"black", "blue"},
    "clouds": {"blue", "white"},
    "sunset": {"orange", "pink", "red"},
    "meadow": {"green"},
    "desert": {"yellow", "orange"},
    "snow": {"white"},
    "waves": {"blue"},
    "undersea": {"blue", "green"},
    "bricks": {"red", "orange"},
    "planks": {"orange"},
    "city": {"black", "blue"},
}
ROUND = frozenset({"circle", "ring"})


@dataclass(frozen=True)
class Scene:
    """Content of one synthetic clip.

    `tint` colours the settings that have no colour of their own; otherwise it is empty.
    """

    shape: str
    colour: str
    count: int
    motion: str
    setting: str
    tint: str
    seed: int
    """Decides what the caption leaves open: positions, sizes and the grain of the setting."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.colour not in COLOURS or self.count not in COUNTS:
            raise ValueError(f"unknown count, colour or shape: {self.count} {self.colour} {self.shape}")
        if self.motion not in MOTIONS or self.setting not in SETTINGS:
            raise ValueError(f"unknown motion or setting: {self.motion}, {self.setting}")
        if (self.setting in TINTED) != (self.tint in TINTS):
            raise ValueError(f"tint: {self.tint!r} is not valid for the setting {self.setting}")

    @property
    def subject(self) -> str:
        """The shapes in words, such as "a red circle" or "two blue stars"."""
        noun = self.shape if self.count == 1 else SHAPES[self.shape]
        article = "an" if self.count == 1 and self.colour[0] in "aeiou" else COUNTS[self.count]
        return f"{article} {self.colour} {noun}"

    @property
    def caption(self) -> str:
        """The caption of the clip: shapes, motion and setting in words."""
        return f"{self.subject} {MOTIONS[self.motion]} {SETTINGS[self.setting].format(tint=self.tint)}"

    @property
    def category(self) -> str:
        """The category of the setting."""
        return _CATEGORY_OF[self.setting]


def random_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene. The category is drawn first, so that all categories are equally frequent."""
    category = _pick(rng, list(CATEGORIES))
    setting = _pick(rng, CATEGORIES[category])
    tint = _pick(rng, list(TINTS)) if setting in TINTED else ""
    clashes = _CLASHES.get(setting, {tint})
    colour = _pick(rng, [name for name in COLOURS if name not in clashes])
    shape = _pick(rng, list(SHAPES))
    # A spinning circle would look like a circle that stands still.
    motion = _pick(rng, [name for name in MOTIONS if not (name == "spinning" and shape in ROUND)])
    return Scene(
        shape=shape,
        colour=colour,
        count=int(rng.integers(1, 5)),
        motion=motion,
        setting=setting,
        tint=tint,
        seed=int(rng.integers(2**31)),
    )


def distinct_scenes(count: int, seed: int) -> list[Scene]:
    """Return `count` scenes, no two with the same caption; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    by_caption: dict[str, Scene] = {}
    while len(by_caption) < count:
        scene = random_scene(rng)
        by_caption.setdefault(scene.caption, scene)
    return list(by_caption.values())


def _pick(rng: np.random.Generator, names: list[str] | tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]
