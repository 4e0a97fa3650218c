"""Paint the backgrounds of synthetic clips: plain and patterned grounds, sky, land, sea and town.

Lengths are in units of the frame's shorter side. The origin is the frame's centre, and y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]

FAR = 9.0
"""A distance greater than any within a frame."""


@lru_cache(maxsize=4)
def backdrop(setting: str, tint: tuple[int, int, int] | None, seed: int, width: int, height: int) -> Floats:
    """Paint the background `setting`: (height, width, 3) float32, 0 to 255, read-only.

    The result is the same for all frames of a clip. `tint` (RGB) colours the settings that have no colour of their own.
    Raises KeyError for an unknown setting.
    """
    rng = np.random.default_rng(seed + 1)
    side = min(width, height)
    across = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / side
    downward = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / side
    x, y = np.meshgrid(across, downward)
    grid = _Grid(x, y, side, tint or (0, 0, 0), rng)
    canvas = _PAINTERS[setting](grid)
    vignette = 1 - 0.16 * smooth((np.hypot(x, y) - 0.25) / 0.6)
    canvas = canvas * vignette[..., None] + 3.5 * grid.noise(48)[..., None]
    canvas = np.clip(canvas, 0, 255).astype(np.float32)
    canvas.setflags(write=False)  # the cache shares this array between all frames
    painted: Floats = canvas
    return painted


def smooth(values: Floats) -> Floats:
    """Clip values to 0..1 and ease them, with zero slope at both ends (smoothstep)."""
    ramp = np.clip(values, 0, 1)
    eased: Floats = ramp * ramp * (3 - 2 * ramp)
    return eased


def _mixed(canvas: Floats, colour: tuple[int, int, int], amount: Floats | float) -> Floats:
    """Blend a colour over the canvas; `amount` is 0 to 1, one value or one per pixel."""
    share = np.asarray(amount, np.float32)[..., None]
    mixed: Floats = canvas + share * (np.array(colour, np.float32) - canvas)
    return mixed


@dataclass(frozen=True)
class _Grid:
    """Pixel coordinates in units of the shorter side, the tint of the setting, and a random generator."""

    x: Floats
    y: Floats
    side_px: int
    tint: tuple[int, int, int]
    rng: np.random.Generator

    def noise(self, cells: float, stretch: float = 1.0) -> Floats:
        """Return smooth noise of about -1 to 1, with `cells` bumps per shorter side.

        Bumps are `stretch` times as wide as high.
        """
        height, width = self.x.shape
        rows = max(2, round(cells * height / self.side_px))
        columns = max(2, round(cells * width / self.side_px / stretch))
        lattice = self.rng.uniform(-1, 1, (rows + 2, columns + 2)).astype(np.float32)
        grown = Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(grown, np.float32)

    def fractal_noise(self, cells: float, stretch: float = 1.0) -> Floats:
        """Return noise of four scales, about -1 to 1."""
        octaves = [self.noise(cells * 2**octave, stretch) / 2**octave for octave in range(4)]
        total: Floats = sum(octaves[1:], octaves[0]) / 1.6
        return total

    def random_per_number(self, numbers: Floats) -> Floats:
        """Return a random value of 0 to 1 for each whole number; equal numbers in one call get equal values."""
        lots = self.rng.uniform(0, 1, 1009)
        drawn: Floats = lots[numbers.astype(int) % len(lots)]
        return drawn

    def peaks(self, level: float, height: float, width: float) -> Floats:
        """Return how far each pixel lies below a row of pointed peaks; negative above."""
        place = self.x[:1] / width + self.rng.uniform(0, 1)
        tall = self.random_per_number(np.floor(place))
        slope = 1 - 2 * np.abs(place % 1 - 0.5)
        line = slope * (0.55 + 0.45 * tall) + 0.06 * self.noise(16)[:1]
        below: Floats = (self.y - level + height * line).astype(np.float32)
        return below

    def ridge(self, level: float, height: float, cells: float) -> Floats:
        """Return how far each pixel lies below a wavy skyline; negative above."""
        line = self.noise(cells)[:1] + 0.5 * self.noise(2 * cells)[:1] + 0.25 * self.noise(5 * cells)[:1]
        below: Floats = self.y - level - height * line
        return below

    def coverage(self, below: Floats) -> Floats:
        """Return the covered share of each pixel, given how far it lies inside an edge."""
        covered: Floats = np.clip(0.5 + below * self.side_px, 0, 1)
        return covered

    def spots(self, count: int, low: float, high: float) -> Floats:
        """Return the distance of each pixel to the nearest of `count` random discs; negative inside.

        The radii are from `low` to `high`.
        """
        nearest = np.full(self.x.shape, FAR, np.float32)
        half_x, half_y = float(-self.x[0, 0]), float(-self.y[0, 0])
        for _ in range(count):
            at_x, at_y = self.rng.uniform(-half_x, half_x), self.rng.uniform(-half_y, half_y)
            np.minimum(nearest, np.hypot(self.x - at_x, self.y - at_y) - self.rng.uniform(low, high), out=nearest)
        return nearest

    def fade(self, *colours: tuple[int, int, int]) -> Floats:
        """Return (height, width, 3) float32: colours that fade into each other from top to bottom."""
        share = (self.y[:, :1] - self.y[0, 0]) / max(float(self.y[-1, 0] - self.y[0, 0]), 1e-6)
        stops = np.linspace(0, 1, len(colours))
        channels = [np.interp(share, stops, [colour[channel] for colour in colours]) for channel in range(3)]
        column = np.stack(channels, -1).astype(np.float32)
        return np.broadcast_to(column, (*self.x.shape, 3)).copy()


def _tinted(grid: _Grid) -> tuple[Floats, tuple[int, int, int]]:
    """Return a canvas in the tint of the setting, and a darker shade of the tint for patterns."""
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
    return _mixed(canvas, dark, 0.85 * grid.coverage((0.25 - np.abs(along - 0.5)) * width))


def _checked(grid: _Grid) -> Floats:
    canvas, dark = _tinted(grid)
    width = grid.rng.uniform(0.2, 0.28)
    start_x, start_y = grid.rng.uniform(0, 1, 2)
    column, row = np.sin(math.tau * (grid.x / width + start_x)), np.sin(math.tau * (grid.y / width + start_y))
    return _mixed(canvas, dark, 0.85 * grid.coverage(column * row * width / math.tau))


def _dotted(grid: _Grid) -> Floats:
    canvas, _ = _tinted(grid)
    width = grid.rng.uniform(0.12, 0.17)
    start_x, start_y = grid.rng.uniform(0, 1, 2)
    row = np.floor(grid.y / width + start_y)
    in_x = (grid.x / width + start_x + 0.5 * (row % 2)) % 1 - 0.5
    in_y = (grid.y / width + start_y) % 1 - 0.5
    return _mixed(canvas, (255, 255, 255), 0.8 * grid.coverage((0.24 - np.hypot(in_x, in_y)) * width))


def _night(grid: _Grid) -> Floats:
    canvas = grid.fade((14, 18, 52), (34, 38, 96), (74, 62, 132))
    haze = np.clip(grid.fractal_noise(2.5), 0, 1)
    canvas = _mixed(canvas, (140, 110, 200), 0.35 * haze)
    small, large = grid.spots(70, 0.001, 0.003), grid.spots(16, 0.003, 0.006)
    glow = np.exp(-np.maximum(large, 0) / 0.012)
    canvas = _mixed(canvas, (255, 250, 225), 0.55 * glow)
    return _mixed(canvas, (255, 255, 245), np.clip(1 - np.minimum(small, large) / 0.005, 0, 1))


def _clouds(grid: _Grid) -> Floats:
    canvas = grid.fade((86, 158, 232), (150, 202, 246), (206, 232, 252))
    thick = grid.fractal_noise(3.2, 1.7)
    canvas = _mixed(canvas, (196, 210, 230), 0.9 * smooth((thick + 0.02) / 0.3))
    return _mixed(canvas, (255, 255, 255), smooth((thick - 0.08) / 0.3))


def _sunset(grid: _Grid) -> Floats:
    canvas = grid.fade((72, 58, 130), (206, 92, 128), (255, 160, 92), (255, 208, 120))
    at_x = grid.rng.uniform(-0.3, 0.3)
    from_sun = np.hypot(grid.x - at_x, grid.y - 0.2) - 0.13
    canvas = _mixed(canvas, (255, 226, 150), 0.7 * np.exp(-np.maximum(from_sun, 0) / 0.1))
    canvas = _mixed(canvas, (255, 244, 200), grid.coverage(-from_sun))
    streaks = smooth((grid.fractal_noise(4, 5) - 0.15) / 0.4)
    canvas = _mixed(canvas, (120, 60, 110), 0.55 * streaks)
    return _mixed(canvas, (52, 34, 66), grid.coverage(grid.ridge(0.36, 0.05, 3)))


def _meadow(grid: _Grid) -> Floats:
    canvas = grid.fade((140, 200, 246), (206, 234, 250), (232, 244, 236))
    canvas = _mixed(canvas, (134, 186, 140), grid.coverage(grid.ridge(-0.16, 0.06, 3)))
    below = grid.ridge(-0.06, 0.04, 2.5)
    blades = grid.noise(70, 0.3) + 0.7 * grid.noise(30, 0.35)
    grass = np.stack([92 + 22 * blades, 168 + 26 * blades, 70 + 16 * blades], -1)
    grass *= (1.1 - 0.45 * np.clip(below, 0, 1))[..., None]
    canvas = canvas + grid.coverage(below)[..., None] * (grass - canvas)
    flowers = np.where(below > 0.03, grid.spots(26, 0.004, 0.009), FAR)
    return _mixed(canvas, (255, 250, 235), 0.9 * grid.coverage(-flowers))


def _desert(grid: _Grid) -> Floats:
    canvas = grid.fade((120, 190, 226), (212, 226, 214), (250, 230, 186))
    for level, tone in ((-0.14, 1.0), (0.02, 0.93), (0.2, 0.86)):
        below = grid.ridge(level, 0.07, 2)
        ripples = np.sin((grid.y + 0.25 * below + 0.06 * grid.noise(3)) * 150)
        light = tone * (1.06 - 0.5 * np.clip(below, 0, 0.5)) + 0.035 * ripples
        sand = np.array((238, 190, 118), np.float32) * light[..., None]
        canvas = canvas + grid.coverage(below)[..., None] * (sand - canvas)
    return canvas


def _snow(grid: _Grid) -> Floats:
    canvas = grid.fade((132, 168, 212), (196, 214, 236), (226, 234, 244))
    for level, width, rock in ((0.12, 0.42, (138, 152, 184)), (0.26, 0.6, (92, 108, 144))):
        below = grid.peaks(level, 0.36, width)
        shade = grid.fractal_noise(7)
        canvas = _mixed(canvas, rock, grid.coverage(below))
        cap = below - 0.13 - 0.06 * shade
        canvas = _mixed(canvas, (248, 250, 255), grid.coverage(below) * smooth(-cap / 0.03))
        canvas = _mixed(canvas, (60, 74, 112), 0.5 * grid.coverage(below) * smooth((shade - 0.15) / 0.4))
    canvas = _mixed(canvas, (240, 245, 252), grid.coverage(grid.ridge(0.24, 0.04, 2)))
    return _mixed(canvas, (255, 255, 255), 0.9 * grid.coverage(-grid.spots(50, 0.002, 0.008)))


def _waves(grid: _Grid) -> Floats:
    canvas = grid.fade((196, 226, 244), (226, 240, 246))
    rows = 8
    for row in range(rows):
        deep = row / (rows - 1)
        phase, length = grid.rng.uniform(0, math.tau), 0.34 + 0.3 * deep
        crest = np.abs(np.sin(grid.x * math.pi / length + phase)) * (0.035 + 0.04 * deep)
        below = grid.y - (-0.36 + 0.115 * row) - crest
        water = (round(96 - 78 * deep), round(176 - 84 * deep), round(214 - 50 * deep))
        canvas = _mixed(canvas, water, grid.coverage(below))
        canvas = _mixed(canvas, (244, 252, 255), 0.85 * grid.coverage(0.009 - np.abs(below - 0.006)))
    return canvas


def _undersea(grid: _Grid) -> Floats:
    canvas = grid.fade((96, 206, 210), (28, 132, 164), (8, 66, 108))
    lean = grid.rng.uniform(-0.5, 0.5)
    rays = np.sin((grid.x + lean * grid.y) * 17) + np.sin((grid.x + 1.3 * lean * grid.y) * 29 + 1)
    canvas = _mixed(canvas, (214, 255, 246), 0.3 * smooth(rays / 1.6) * np.clip(0.6 - grid.y, 0, 1))
    canvas = _mixed(canvas, (6, 58, 74), 0.9 * grid.coverage(grid.ridge(0.38, 0.05, 7)))
    bubbles = grid.spots(22, 0.008, 0.026)
    canvas = _mixed(canvas, (220, 255, 255), 0.2 * grid.coverage(-bubbles))
    return _mixed(canvas, (230, 255, 255), 0.75 * grid.coverage(0.004 - np.abs(bubbles)))


def _bricks(grid: _Grid) -> Floats:
    tall = grid.rng.uniform(0.075, 0.095)
    wide = 2.3 * tall
    start_x, start_y = grid.rng.uniform(0, 1, 2)
    row = np.floor(grid.y / tall + start_y)
    across = grid.x / wide + start_x + 0.5 * (row % 2)
    shade = grid.random_per_number(row + 57 * np.floor(across))
    light = 0.86 + 0.22 * shade + 0.05 * grid.noise(40)
    brick = np.array((176, 86, 66), np.float32) * light[..., None]
    edge_x, edge_y = 0.5 - np.abs(across % 1 - 0.5), 0.5 - np.abs((grid.y / tall + start_y) % 1 - 0.5)
    mortar = grid.coverage(0.007 - np.minimum(edge_x * wide, edge_y * tall))
    return _mixed(brick, (214, 200, 186), mortar)


def _planks(grid: _Grid) -> Floats:
    wide = grid.rng.uniform(0.15, 0.2)
    place = grid.y / wide + grid.rng.uniform(0, 1)
    board = np.floor(place)
    shade = grid.random_per_number(board)
    grain = np.sin((grid.y * 90 + 5 * grid.noise(5, 4) + 3 * grid.noise(12, 6)) * 1.4)
    light = 0.84 + 0.24 * shade + 0.05 * grain + 0.05 * grid.noise(60, 8)
    wood = np.array((188, 136, 88), np.float32) * light[..., None]
    return _mixed(wood, (84, 54, 34), 0.9 * grid.coverage(0.005 - (0.5 - np.abs(place % 1 - 0.5)) * wide))


def _city(grid: _Grid) -> Floats:
    canvas = grid.fade((18, 20, 44), (52, 42, 86), (150, 84, 112))
    for level, tone in ((-0.02, (44, 42, 78)), (0.14, (24, 24, 48))):
        wide = grid.rng.uniform(0.1, 0.15)
        place = grid.x / wide + grid.rng.uniform(0, 1)
        house = np.floor(place)
        tall = grid.random_per_number(house)
        below = grid.y - level + 0.24 * (tall - 0.5)
        wall = grid.coverage(below) * (np.abs(place % 1 - 0.5) < 0.46)
        canvas = _mixed(canvas, tone, wall)
        at_x, at_y = place % 1 * 4, below / 0.036
        lit = grid.random_per_number(np.floor(at_x) + 7 * np.floor(at_y) + 311 * house) > 0.5
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
