"""Draws short clips: a few coloured shapes that move in front of a setting, and the words for them.

Knows how a scene looks and what to call it. Knows nothing of models, libraries or requests: the demo
library and the training of the tiny model both ask here, and neither needs a picture from elsewhere.

A length is in units of the frame's shorter side, the origin is the frame's centre, and y points down.
Shapes are kept as signed distances, so an edge is smooth at every size and a soft shadow costs nothing.
Moving shapes leave a fading trail: a clip is searched by the mean of its frames' embeddings, which has
no order in time, so "moving left" has to be visible in every single frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]

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
_TINTED = frozenset({"plain", "striped", "checked", "dotted"})
_CATEGORY_OF = {setting: category for category, settings in CATEGORIES.items() for setting in settings}
# A shape in its setting's own colour could hardly be seen.
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
_ROUND = frozenset({"circle", "ring"})
_HEADINGS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "rising": (0.0, -1.0), "falling": (0.0, 1.0)}
_RADII = {1: 0.20, 2: 0.145, 3: 0.13, 4: 0.12}
_SPREADS = {1: 0.0, 2: 0.20, 3: 0.215, 4: 0.24}
_TRAVEL = 0.30
_TRAIL_OPACITIES = (0.42, 0.26, 0.14)
_FAR = 9.0


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `tint` colours the settings that have no colour of their own, else it is ""."""

    shape: str
    colour: str
    count: int
    motion: str
    setting: str
    tint: str
    seed: int
    """Decides what the caption leaves open: places, sizes, the grain of the setting."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.colour not in COLOURS or self.count not in COUNTS:
            raise ValueError(f"no such shapes: {self.count} {self.colour} {self.shape}")
        if self.motion not in MOTIONS or self.setting not in SETTINGS:
            raise ValueError(f"no such motion or setting: {self.motion}, {self.setting}")
        if (self.setting in _TINTED) != (self.tint in TINTS):
            raise ValueError(f"setting {self.setting} with tint {self.tint!r}")

    @property
    def subject(self) -> str:
        noun = self.shape if self.count == 1 else SHAPES[self.shape]
        article = "an" if self.count == 1 and self.colour[0] in "aeiou" else COUNTS[self.count]
        return f"{article} {self.colour} {noun}"

    @property
    def caption(self) -> str:
        return f"{self.subject} {MOTIONS[self.motion]} {SETTINGS[self.setting].format(tint=self.tint)}"

    @property
    def category(self) -> str:
        return _CATEGORY_OF[self.setting]


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene drawn category first, so that each category is equally frequent."""
    category = _pick(rng, list(CATEGORIES))
    setting = _pick(rng, CATEGORIES[category])
    tint = _pick(rng, list(TINTS)) if setting in _TINTED else ""
    clashes = _CLASHES.get(setting, {tint})
    colour = _pick(rng, [name for name in COLOURS if name not in clashes])
    shape = _pick(rng, list(SHAPES))
    # A spinning circle would look like one that stands still.
    motion = _pick(rng, [name for name in MOTIONS if not (name == "spinning" and shape in _ROUND)])
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
    """`count` scenes, no two with the same caption; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    by_caption: dict[str, Scene] = {}
    while len(by_caption) < count:
        scene = random_scene(rng)
        by_caption.setdefault(scene.caption, scene)
    return list(by_caption.values())


def draw_frame(scene: Scene, moment: float, width: int, height: int) -> Image.Image:
    """The frame at `moment`, 0 for the clip's start and 1 for its end, as an RGB picture."""
    canvas = _backdrop(scene, width, height).copy()
    side = np.float32(min(width, height))
    colour = np.array(COLOURS[scene.colour], np.float32)
    trail = scene.motion not in ("still", "growing")
    for step in range(len(_TRAIL_OPACITIES) if trail else 0, 0, -1):
        distance = _distance(scene, moment, step, width, height)
        _blend(canvas, colour, _TRAIL_OPACITIES[step - 1] * _coverage(distance, side))
    distance = _distance(scene, moment, 0, width, height)
    if scene.motion == "growing":
        for step, strength in enumerate(_TRAIL_OPACITIES, start=1):
            from_line = np.abs(distance - np.float32(0.026 * step))
            _blend(canvas, colour, 1.4 * strength * np.clip(1 - from_line / np.float32(0.008), 0, 1))
    down = max(1, round(0.03 * float(side)))
    beneath = np.pad(distance, ((down, 0), (0, 0)), mode="edge")[:height]
    _blend(canvas, np.zeros(3, np.float32), 0.36 * _smooth((0.035 - beneath) / np.float32(0.06)))
    _blend(canvas, _shaded(colour, distance, side), _coverage(distance, side))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def write_clip(
    scene: Scene, path: Path, *, seconds: float = 2.0, fps: int = 12, width: int = 256, height: int = 256
) -> None:
    """Encodes the scene as an MP4 file that a browser plays; the same bytes for the same scene."""
    import av  # here, so that drawing alone does not need FFmpeg
    from av.codec.codec import UnknownCodecError

    frames = max(1, round(seconds * fps))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any
        try:
            stream = container.add_stream("libx264", rate=fps)
            stream.options = {"crf": "20", "preset": "veryfast"}
        except UnknownCodecError:  # FFmpeg built without GPL parts
            stream = container.add_stream("mpeg4", rate=fps)
            stream.options = {"q": "3"}
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1  # several clips are written at once, each on one core
        for number in range(frames):
            picture = draw_frame(scene, number / max(1, frames - 1), width, height)
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _pick(rng: np.random.Generator, names: list[str] | tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _smooth(values: Floats) -> Floats:
    ramp = np.clip(values, 0, 1)
    eased: Floats = ramp * ramp * (3 - 2 * ramp)
    return eased


def _coverage(distance: Floats, side: np.floating[Any]) -> Floats:
    """The share of each pixel that lies inside: the smooth edge."""
    covered: Floats = np.clip(np.float32(0.5) - distance * side, 0, 1)
    return covered


def _blend(canvas: Floats, colour: Floats, opacity: Floats) -> None:
    """Lays a colour, or a picture of colours, over the canvas; touches only what it covers, for speed."""
    covered = np.flatnonzero(opacity.ravel() > 0)
    flat = canvas.reshape(-1, 3)
    below = flat[covered]
    above = colour if colour.ndim == 1 else colour.reshape(-1, 3)[covered]
    share = opacity.ravel()[covered, None].astype(np.float32)
    flat[covered] = below + share * (above - below)


def _mixed(canvas: Floats, colour: tuple[int, int, int], amount: Floats | float) -> Floats:
    share = np.asarray(amount, np.float32)[..., None]
    mixed: Floats = canvas + share * (np.array(colour, np.float32) - canvas)
    return mixed


# --- shapes


def _outline(shape: str) -> Floats:
    """The corners of a shape of radius about one, in order."""

    def around(radii: list[float], start_degrees: float) -> Floats:
        angles = np.radians(start_degrees) + np.arange(len(radii)) * 2 * np.pi / len(radii)
        corners: Floats = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None]
        return corners

    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    corners: Floats
    match shape:
        case "square":
            corners = around([1.12] * 4, 45)
        case "triangle":
            corners = around([1.15] * 3, -90) + np.array([0, 0.18])
        case "diamond":
            corners = np.array([[0, -1.18], [0.7, 0], [0, 1.18], [-0.7, 0]])
        case "star":
            corners = around([1.15, 0.48] * 5, -90)
        case "heart":
            x = 16 * np.sin(turn) ** 3
            y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
            corners = np.stack([x, -y - 2.5], 1) / 15
        case "cross":
            arm, half = 1.08, 0.36
            quarter = [(half, -arm), (half, -half), (arm, -half)]
            turned = [(-y, x) for x, y in quarter]
            corners = np.array(quarter + turned + [(-x, -y) for x, y in quarter + turned])
        case "moon":
            outer, inner = np.radians(np.linspace(50, 310, 40)), np.radians(np.linspace(292, 68, 32))
            edge = np.stack([np.cos(outer), np.sin(outer)], 1)
            bite = np.stack([0.46 + 0.83 * np.cos(inner), 0.83 * np.sin(inner)], 1)
            corners = np.concatenate([edge, bite]) * 1.08 + np.array([0.14, 0])
        case "flower":
            corners = around(list(0.86 + 0.26 * np.cos(5 * turn)), -90)
        case _:
            raise ValueError(f"no outline for {shape}")
    return corners


@lru_cache(maxsize=len(SHAPES))
def _distance_table(shape: str) -> Image.Image:
    """Signed distances to a shape of radius one, negative inside, over [-2, 2] each way."""
    axis = np.linspace(-2, 2, 193)
    x, y = np.meshgrid(axis, axis)
    if shape in _ROUND:
        distance = np.hypot(x, y) - 1.0
        if shape == "ring":
            distance = np.abs(distance + 0.22) - 0.24
        return Image.fromarray(distance.astype(np.float32))
    corners = _outline(shape)
    distance = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / max(ex * ex + ey * ey, 1e-9), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if abs(ey) > 1e-12:
            inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / ey)
    rounded = np.where(inside, -distance, distance) - 0.05
    return Image.fromarray(rounded.astype(np.float32))


def _distance(scene: Scene, moment: float, step: int, width: int, height: int) -> Floats:
    """Signed distance of each pixel to the nearest shape, `step` steps down the trail."""
    side = min(width, height)
    table = _distance_table(scene.shape)
    per_unit = (table.width - 1) / 4
    canvas = np.full((height, width), _FAR, np.float32)
    for x, y, radius, angle in _placements(scene, moment, step):
        reach = 1.95 * radius * side
        centre_x, centre_y = x * side + width / 2, y * side + height / 2
        left, right = max(0, math.floor(centre_x - reach)), min(width, math.ceil(centre_x + reach))
        top, bottom = max(0, math.floor(centre_y - reach)), min(height, math.ceil(centre_y + reach))
        if left >= right or top >= bottom:
            continue
        cos = math.cos(angle) * per_unit / (radius * side)
        sin = math.sin(angle) * per_unit / (radius * side)
        from_x, from_y = left - centre_x, top - centre_y
        middle = (table.width - 1) / 2 + 0.5
        coefficients = (
            cos, sin, cos * from_x + sin * from_y + middle,
            -sin, cos, -sin * from_x + cos * from_y + middle,
        )  # fmt: skip
        patch = table.transform(
            (right - left, bottom - top),
            Image.Transform.AFFINE,
            coefficients,
            Image.Resampling.BILINEAR,
            fillcolor=2.0,
        )
        window = canvas[top:bottom, left:right]
        np.minimum(window, np.asarray(patch, np.float32) * np.float32(radius), out=window)
    return canvas


def _placements(scene: Scene, moment: float, step: int) -> list[tuple[float, float, float, float]]:
    """x, y, radius and angle in radians of each shape."""
    rng = np.random.default_rng(scene.seed)
    radius = _RADII[scene.count] * rng.uniform(0.88, 1.12)
    first = rng.uniform(0, 2 * math.pi)
    speed = rng.uniform(0.8, 1.2)
    shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
    placements = []
    for number in range(scene.count):
        bearing = first + number * 2 * math.pi / scene.count + rng.uniform(-0.12, 0.12)
        spread = _SPREADS[scene.count]
        x, y = shift_x + spread * math.cos(bearing), shift_y + spread * math.sin(bearing)
        angle = rng.uniform(-0.16, 0.16)
        size = radius * (1 - 0.06 * step)
        if scene.motion in _HEADINGS:
            travelled = (moment - 0.5) * _TRAVEL * speed - 0.42 * radius * step
            x += _HEADINGS[scene.motion][0] * travelled
            y += _HEADINGS[scene.motion][1] * travelled
        elif scene.motion == "circling":
            orbit = 2 * math.pi * moment * speed + first - 0.62 * step
            wide = 0.13 if scene.count > 1 else 0.2
            x, y = x + wide * math.cos(orbit), y + wide * math.sin(orbit)
        elif scene.motion == "spinning":
            angle += 2 * math.pi * moment * speed - 0.24 * step
            size = radius * (1 + 0.07 * step)
        elif scene.motion == "growing":
            size = radius * (0.62 + 0.56 * moment)
        placements.append((x, y, size, angle))
    return placements


def _shaded(colour: Floats, distance: Floats, side: np.floating[Any]) -> Floats:
    """A colour as a softly raised surface, lit from the upper left."""
    shaded = np.empty((*distance.shape, 3), np.float32)
    near = distance * side < 1
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if rows.size == 0:
        return shaded
    inner = (slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2))
    window = distance[inner]
    if min(window.shape) < 2:
        shaded[:] = colour
        return shaded
    slope_y, slope_x = np.gradient(window * side)
    lit = -(np.float32(0.5) * slope_x + np.float32(0.86) * slope_y)
    light = np.clip(lit * np.exp(np.minimum(window, 0) / np.float32(0.022)), -1, 1)[..., None]
    bright = np.float32(0.5) * np.maximum(light, 0)
    dim = 1 + np.float32(0.3) * np.minimum(light, 0)
    shaded[inner] = (colour + bright * (255 - colour)) * dim
    return shaded


# --- settings


@lru_cache(maxsize=4)
def _backdrop(scene: Scene, width: int, height: int) -> Floats:
    """The setting, (height, width, 3) in 0..255: the same in all frames of a clip."""
    rng = np.random.default_rng(scene.seed + 1)
    side = min(width, height)
    across = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / side
    downward = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / side
    x, y = np.meshgrid(across, downward)
    grid = _Grid(x, y, side, TINTS.get(scene.tint, (0, 0, 0)), rng)
    canvas = _PAINTERS[scene.setting](grid)
    vignette = 1 - 0.16 * _smooth((np.hypot(x, y) - 0.25) / 0.6)
    canvas = canvas * vignette[..., None] + 3.5 * grid.noise(48)[..., None]
    canvas = np.clip(canvas, 0, 255).astype(np.float32)
    canvas.setflags(write=False)  # shared by all frames through the cache
    backdrop: Floats = canvas
    return backdrop


@dataclass(frozen=True)
class _Grid:
    """Where each pixel is, in units of the shorter side, the setting's tint, and a source of grain."""

    x: Floats
    y: Floats
    side_px: int
    tint: tuple[int, int, int]
    rng: np.random.Generator

    def noise(self, cells: float, stretch: float = 1.0) -> Floats:
        """Smooth noise in about -1..1 with `cells` bumps per side, `stretch` times as wide as high."""
        height, width = self.x.shape
        rows = max(2, round(cells * height / self.side_px))
        columns = max(2, round(cells * width / self.side_px / stretch))
        lattice = self.rng.uniform(-1, 1, (rows + 2, columns + 2)).astype(np.float32)
        grown = Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(grown, np.float32)

    def clouded(self, cells: float, stretch: float = 1.0) -> Floats:
        """Noise of four scales in about -1..1."""
        octaves = [self.noise(cells * 2**octave, stretch) / 2**octave for octave in range(4)]
        total: Floats = sum(octaves[1:], octaves[0]) / 1.6
        return total

    def lottery(self, numbers: Floats) -> Floats:
        """A value in 0..1 for each whole number, the same for the same number within one call."""
        lots = self.rng.uniform(0, 1, 1009)
        drawn: Floats = lots[numbers.astype(int) % len(lots)]
        return drawn

    def peaks(self, level: float, height: float, width: float) -> Floats:
        """How far each pixel lies below a row of pointed peaks."""
        place = self.x[:1] / width + self.rng.uniform(0, 1)
        tall = self.lottery(np.floor(place))
        slope = 1 - 2 * np.abs(place % 1 - 0.5)
        line = slope * (0.55 + 0.45 * tall) + 0.06 * self.noise(16)[:1]
        below: Floats = (self.y - level + height * line).astype(np.float32)
        return below

    def ridge(self, level: float, height: float, cells: float) -> Floats:
        """How far each pixel lies below a wandering skyline."""
        line = self.noise(cells)[:1] + 0.5 * self.noise(2 * cells)[:1] + 0.25 * self.noise(5 * cells)[:1]
        below: Floats = self.y - level - height * line
        return below

    def covers(self, below: Floats) -> Floats:
        covered: Floats = np.clip(0.5 + below * self.side_px, 0, 1)
        return covered

    def spots(self, count: int, low: float, high: float) -> Floats:
        """Distance to the edge of the nearest of `count` discs with radii from `low` to `high`."""
        nearest = np.full(self.x.shape, _FAR, np.float32)
        half_x, half_y = float(-self.x[0, 0]), float(-self.y[0, 0])
        for _ in range(count):
            at_x, at_y = self.rng.uniform(-half_x, half_x), self.rng.uniform(-half_y, half_y)
            np.minimum(nearest, np.hypot(self.x - at_x, self.y - at_y) - self.rng.uniform(low, high), out=nearest)
        return nearest

    def fade(self, *colours: tuple[int, int, int]) -> Floats:
        """Colours that fade into each other from top to bottom."""
        share = (self.y[:, :1] - self.y[0, 0]) / max(float(self.y[-1, 0] - self.y[0, 0]), 1e-6)
        stops = np.linspace(0, 1, len(colours))
        channels = [np.interp(share, stops, [colour[channel] for colour in colours]) for channel in range(3)]
        column = np.stack(channels, -1).astype(np.float32)
        return np.broadcast_to(column, (*self.x.shape, 3)).copy()


def _tinted(grid: _Grid) -> tuple[Floats, tuple[int, int, int]]:
    red, green, blue = grid.tint
    canvas = np.broadcast_to(np.array((red, green, blue), np.float32), (*grid.x.shape, 3))
    light = 1.07 - 0.16 * grid.y + 0.03 * grid.noise(3)
    return canvas * light[..., None], (round(red * 0.72), round(green * 0.72), round(blue * 0.72))


def _plain(grid: _Grid) -> Floats:
    return _tinted(grid)[0]


def _striped(grid: _Grid) -> Floats:
    canvas, dark = _tinted(grid)
    angle, width = grid.rng.uniform(0, math.pi), grid.rng.uniform(0.1, 0.16)
    along = (grid.x * math.cos(angle) + grid.y * math.sin(angle)) / width % 1
    return _mixed(canvas, dark, 0.85 * grid.covers((0.25 - np.abs(along - 0.5)) * width))


def _checked(grid: _Grid) -> Floats:
    canvas, dark = _tinted(grid)
    width = grid.rng.uniform(0.2, 0.28)
    start_x, start_y = grid.rng.uniform(0, 1, 2)
    column, row = np.sin(math.tau * (grid.x / width + start_x)), np.sin(math.tau * (grid.y / width + start_y))
    return _mixed(canvas, dark, 0.85 * grid.covers(column * row * width / math.tau))


def _dotted(grid: _Grid) -> Floats:
    canvas, _ = _tinted(grid)
    width = grid.rng.uniform(0.12, 0.17)
    start_x, start_y = grid.rng.uniform(0, 1, 2)
    row = np.floor(grid.y / width + start_y)
    in_x = (grid.x / width + start_x + 0.5 * (row % 2)) % 1 - 0.5
    in_y = (grid.y / width + start_y) % 1 - 0.5
    return _mixed(canvas, (255, 255, 255), 0.8 * grid.covers((0.24 - np.hypot(in_x, in_y)) * width))


def _night(grid: _Grid) -> Floats:
    canvas = grid.fade((14, 18, 52), (34, 38, 96), (74, 62, 132))
    haze = np.clip(grid.clouded(2.5), 0, 1)
    canvas = _mixed(canvas, (140, 110, 200), 0.35 * haze)
    small, large = grid.spots(70, 0.001, 0.003), grid.spots(16, 0.003, 0.006)
    glow = np.exp(-np.maximum(large, 0) / 0.012)
    canvas = _mixed(canvas, (255, 250, 225), 0.55 * glow)
    return _mixed(canvas, (255, 255, 245), np.clip(1 - np.minimum(small, large) / 0.005, 0, 1))


def _clouds(grid: _Grid) -> Floats:
    canvas = grid.fade((86, 158, 232), (150, 202, 246), (206, 232, 252))
    thick = grid.clouded(3.2, 1.7)
    canvas = _mixed(canvas, (196, 210, 230), 0.9 * _smooth((thick + 0.02) / 0.3))
    return _mixed(canvas, (255, 255, 255), _smooth((thick - 0.08) / 0.3))


def _sunset(grid: _Grid) -> Floats:
    canvas = grid.fade((72, 58, 130), (206, 92, 128), (255, 160, 92), (255, 208, 120))
    at_x = grid.rng.uniform(-0.3, 0.3)
    from_sun = np.hypot(grid.x - at_x, grid.y - 0.2) - 0.13
    canvas = _mixed(canvas, (255, 226, 150), 0.7 * np.exp(-np.maximum(from_sun, 0) / 0.1))
    canvas = _mixed(canvas, (255, 244, 200), grid.covers(-from_sun))
    streaks = _smooth((grid.clouded(4, 5) - 0.15) / 0.4)
    canvas = _mixed(canvas, (120, 60, 110), 0.55 * streaks)
    return _mixed(canvas, (52, 34, 66), grid.covers(grid.ridge(0.36, 0.05, 3)))


def _meadow(grid: _Grid) -> Floats:
    canvas = grid.fade((140, 200, 246), (206, 234, 250), (232, 244, 236))
    canvas = _mixed(canvas, (134, 186, 140), grid.covers(grid.ridge(-0.16, 0.06, 3)))
    below = grid.ridge(-0.06, 0.04, 2.5)
    blades = grid.noise(70, 0.3) + 0.7 * grid.noise(30, 0.35)
    grass = np.stack([92 + 22 * blades, 168 + 26 * blades, 70 + 16 * blades], -1)
    grass *= (1.1 - 0.45 * np.clip(below, 0, 1))[..., None]
    canvas = canvas + grid.covers(below)[..., None] * (grass - canvas)
    flowers = np.where(below > 0.03, grid.spots(26, 0.004, 0.009), _FAR)
    return _mixed(canvas, (255, 250, 235), 0.9 * grid.covers(-flowers))


def _desert(grid: _Grid) -> Floats:
    canvas = grid.fade((120, 190, 226), (212, 226, 214), (250, 230, 186))
    for level, tone in ((-0.14, 1.0), (0.02, 0.93), (0.2, 0.86)):
        below = grid.ridge(level, 0.07, 2)
        ripples = np.sin((grid.y + 0.25 * below + 0.06 * grid.noise(3)) * 150)
        light = tone * (1.06 - 0.5 * np.clip(below, 0, 0.5)) + 0.035 * ripples
        sand = np.array((238, 190, 118), np.float32) * light[..., None]
        canvas = canvas + grid.covers(below)[..., None] * (sand - canvas)
    return canvas


def _snow(grid: _Grid) -> Floats:
    canvas = grid.fade((132, 168, 212), (196, 214, 236), (226, 234, 244))
    for level, width, rock in ((0.12, 0.42, (138, 152, 184)), (0.26, 0.6, (92, 108, 144))):
        below = grid.peaks(level, 0.36, width)
        shade = grid.clouded(7)
        canvas = _mixed(canvas, rock, grid.covers(below))
        cap = below - 0.13 - 0.06 * shade
        canvas = _mixed(canvas, (248, 250, 255), grid.covers(below) * _smooth(-cap / 0.03))
        canvas = _mixed(canvas, (60, 74, 112), 0.5 * grid.covers(below) * _smooth((shade - 0.15) / 0.4))
    canvas = _mixed(canvas, (240, 245, 252), grid.covers(grid.ridge(0.24, 0.04, 2)))
    return _mixed(canvas, (255, 255, 255), 0.9 * grid.covers(-grid.spots(50, 0.002, 0.008)))


def _waves(grid: _Grid) -> Floats:
    canvas = grid.fade((196, 226, 244), (226, 240, 246))
    rows = 8
    for row in range(rows):
        deep = row / (rows - 1)
        phase, length = grid.rng.uniform(0, math.tau), 0.34 + 0.3 * deep
        crest = np.abs(np.sin(grid.x * math.pi / length + phase)) * (0.035 + 0.04 * deep)
        below = grid.y - (-0.36 + 0.115 * row) - crest
        water = (round(96 - 78 * deep), round(176 - 84 * deep), round(214 - 50 * deep))
        canvas = _mixed(canvas, water, grid.covers(below))
        canvas = _mixed(canvas, (244, 252, 255), 0.85 * grid.covers(0.009 - np.abs(below - 0.006)))
    return canvas


def _undersea(grid: _Grid) -> Floats:
    canvas = grid.fade((96, 206, 210), (28, 132, 164), (8, 66, 108))
    lean = grid.rng.uniform(-0.5, 0.5)
    rays = np.sin((grid.x + lean * grid.y) * 17) + np.sin((grid.x + 1.3 * lean * grid.y) * 29 + 1)
    canvas = _mixed(canvas, (214, 255, 246), 0.3 * _smooth(rays / 1.6) * np.clip(0.6 - grid.y, 0, 1))
    canvas = _mixed(canvas, (6, 58, 74), 0.9 * grid.covers(grid.ridge(0.38, 0.05, 7)))
    bubbles = grid.spots(22, 0.008, 0.026)
    canvas = _mixed(canvas, (220, 255, 255), 0.2 * grid.covers(-bubbles))
    return _mixed(canvas, (230, 255, 255), 0.75 * grid.covers(0.004 - np.abs(bubbles)))


def _bricks(grid: _Grid) -> Floats:
    tall = grid.rng.uniform(0.075, 0.095)
    wide = 2.3 * tall
    start_x, start_y = grid.rng.uniform(0, 1, 2)
    row = np.floor(grid.y / tall + start_y)
    across = grid.x / wide + start_x + 0.5 * (row % 2)
    shade = grid.lottery(row + 57 * np.floor(across))
    light = 0.86 + 0.22 * shade + 0.05 * grid.noise(40)
    brick = np.array((176, 86, 66), np.float32) * light[..., None]
    edge_x, edge_y = 0.5 - np.abs(across % 1 - 0.5), 0.5 - np.abs((grid.y / tall + start_y) % 1 - 0.5)
    mortar = grid.covers(0.007 - np.minimum(edge_x * wide, edge_y * tall))
    return _mixed(brick, (214, 200, 186), mortar)


def _planks(grid: _Grid) -> Floats:
    wide = grid.rng.uniform(0.15, 0.2)
    place = grid.y / wide + grid.rng.uniform(0, 1)
    board = np.floor(place)
    shade = grid.lottery(board)
    grain = np.sin((grid.y * 90 + 5 * grid.noise(5, 4) + 3 * grid.noise(12, 6)) * 1.4)
    light = 0.84 + 0.24 * shade + 0.05 * grain + 0.05 * grid.noise(60, 8)
    wood = np.array((188, 136, 88), np.float32) * light[..., None]
    return _mixed(wood, (84, 54, 34), 0.9 * grid.covers(0.005 - (0.5 - np.abs(place % 1 - 0.5)) * wide))


def _city(grid: _Grid) -> Floats:
    canvas = grid.fade((18, 20, 44), (52, 42, 86), (150, 84, 112))
    for level, tone in ((-0.02, (44, 42, 78)), (0.14, (24, 24, 48))):
        wide = grid.rng.uniform(0.1, 0.15)
        place = grid.x / wide + grid.rng.uniform(0, 1)
        house = np.floor(place)
        tall = grid.lottery(house)
        below = grid.y - level + 0.24 * (tall - 0.5)
        wall = grid.covers(below) * (np.abs(place % 1 - 0.5) < 0.46)
        canvas = _mixed(canvas, tone, wall)
        at_x, at_y = place % 1 * 4, below / 0.036
        lit = grid.lottery(np.floor(at_x) + 7 * np.floor(at_y) + 311 * house) > 0.5
        pane = (np.abs(at_x % 1 - 0.5) < 0.27) & (np.abs(at_y % 1 - 0.5) < 0.3) & (below > 0.02)
        canvas = _mixed(canvas, (255, 214, 122), 0.9 * wall * lit * pane)
    return canvas


_PAINTERS: dict[str, Callable[[_Grid], Floats]] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "night": _night,
    "clouds": _clouds,
    "sunset": _sunset,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "waves": _waves,
    "undersea": _undersea,
    "bricks": _bricks,
    "planks": _planks,
    "city": _city,
}
