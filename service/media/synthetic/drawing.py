"""Draw short synthetic clips: a few coloured shapes that move in front of a background.

The demo library and the training of the small model use these clips, so neither needs images from elsewhere. `scenes`
describes what a clip shows, with its caption.

Lengths are in units of the frame's shorter side. The origin is the frame's centre, and y points down. Shapes are signed
distances, so an edge is smooth at every size and a soft shadow costs nothing. Moving shapes leave a fading trail. A
clip is searched by the mean of its frames' embeddings, which has no order in time. "Moving left" must therefore be
visible in every single frame.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.media.synthetic.backgrounds import FAR, backdrop, smooth
from service.media.synthetic.encoding import encode
from service.media.synthetic.scenes import COLOURS, ROUND, SHAPES, TINTS, Scene

Floats = NDArray[np.floating[Any]]
_HEADINGS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "rising": (0.0, -1.0), "falling": (0.0, 1.0)}
_RADII = {1: 0.20, 2: 0.145, 3: 0.13, 4: 0.12}
_SPREADS = {1: 0.0, 2: 0.20, 3: 0.215, 4: 0.24}
_TRAVEL = 0.30
_TRAIL_OPACITIES = (0.42, 0.26, 0.14)


def draw_frame(scene: Scene, time_share: float, width: int, height: int) -> Image.Image:
    """Draw one frame as an RGB image of `width` x `height` pixels.

    `time_share` is the time within the clip: 0 is its start, 1 its end.
    """
    canvas = backdrop(scene.setting, TINTS.get(scene.tint), scene.seed, width, height).copy()
    side = np.float32(min(width, height))
    colour = np.array(COLOURS[scene.colour], np.float32)
    trail = scene.motion not in ("still", "growing")
    for step in range(len(_TRAIL_OPACITIES) if trail else 0, 0, -1):
        distance = _distance(scene, time_share, step, width, height)
        _blend(canvas, colour, _TRAIL_OPACITIES[step - 1] * _coverage(distance, side))
    distance = _distance(scene, time_share, 0, width, height)
    if scene.motion == "growing":
        for step, strength in enumerate(_TRAIL_OPACITIES, start=1):
            from_line = np.abs(distance - np.float32(0.026 * step))
            _blend(canvas, colour, 1.4 * strength * np.clip(1 - from_line / np.float32(0.008), 0, 1))
    down = max(1, round(0.03 * float(side)))
    beneath = np.pad(distance, ((down, 0), (0, 0)), mode="edge")[:height]
    _blend(canvas, np.zeros(3, np.float32), 0.36 * smooth((0.035 - beneath) / np.float32(0.06)))
    _blend(canvas, _shaded(colour, distance, side), _coverage(distance, side))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def write_clip(
    scene: Scene, path: Path, *, seconds: float = 2.0, fps: int = 12, width: int = 256, height: int = 256
) -> None:
    """Encode the scene as an MP4 file that browsers play; the same scene gives the same bytes."""
    frames = max(1, round(seconds * fps))
    images = (draw_frame(scene, number / max(1, frames - 1), width, height) for number in range(frames))
    encode((np.asarray(image) for image in images), path, fps=fps, width=width, height=height)


def _coverage(distance: Floats, side: np.floating[Any]) -> Floats:
    """Return the share of each pixel that lies inside a shape, which makes its edge smooth."""
    covered: Floats = np.clip(np.float32(0.5) - distance * side, 0, 1)
    return covered


def _blend(canvas: Floats, colour: Floats, opacity: Floats) -> None:
    """Blend one colour, or an image of colours, over the canvas; compute only covered pixels, for speed."""
    covered = np.flatnonzero(opacity.ravel() > 0)
    flat = canvas.reshape(-1, 3)
    below = flat[covered]
    above = colour if colour.ndim == 1 else colour.reshape(-1, 3)[covered]
    share = opacity.ravel()[covered, None].astype(np.float32)
    flat[covered] = below + share * (above - below)


def _outline(shape: str) -> Floats:
    """Return the corners (N, 2) of a shape with a radius of about one, in order."""

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
            raise ValueError(f"shape: unknown value {shape!r}")
    return corners


@lru_cache(maxsize=len(SHAPES))
def _distance_table(shape: str) -> Image.Image:
    """Return the signed distances to a shape of radius one, negative inside, over [-2, 2] in x and y."""
    axis = np.linspace(-2, 2, 193)
    x, y = np.meshgrid(axis, axis)
    if shape in ROUND:
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


def _distance(scene: Scene, time_share: float, step: int, width: int, height: int) -> Floats:
    """Return each pixel's signed distance to the nearest shape, `step` steps back along the trail."""
    side = min(width, height)
    table = _distance_table(scene.shape)
    per_unit = (table.width - 1) / 4
    canvas = np.full((height, width), FAR, np.float32)
    for x, y, radius, angle in _placements(scene, time_share, step):
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


def _placements(scene: Scene, time_share: float, step: int) -> list[tuple[float, float, float, float]]:
    """Return x, y, radius and angle (radians) of each shape."""
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
            travelled = (time_share - 0.5) * _TRAVEL * speed - 0.42 * radius * step
            x += _HEADINGS[scene.motion][0] * travelled
            y += _HEADINGS[scene.motion][1] * travelled
        elif scene.motion == "circling":
            orbit = 2 * math.pi * time_share * speed + first - 0.62 * step
            wide = 0.13 if scene.count > 1 else 0.2
            x, y = x + wide * math.cos(orbit), y + wide * math.sin(orbit)
        elif scene.motion == "spinning":
            angle += 2 * math.pi * time_share * speed - 0.24 * step
            size = radius * (1 + 0.07 * step)
        elif scene.motion == "growing":
            size = radius * (0.62 + 0.56 * time_share)
        placements.append((x, y, size, angle))
    return placements


def _shaded(colour: Floats, distance: Floats, side: np.floating[Any]) -> Floats:
    """Return (height, width, 3) float32: a colour as a softly raised surface, lit from the upper left.

    Pixels far from every shape hold arbitrary values.
    """
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
