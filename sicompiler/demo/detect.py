"""A plain detector: which colour, shape and direction a clip shows. It judges the demo model, so it learns nothing."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sicompiler.demo.shapes import coverage
from sicompiler.demo.words import COLOURS, SHAPES, Scene

LEAST_CHROMA = 0.3  # largest minus smallest channel: anything paler counts as background
STRONGEST_PIXELS = 16  # give the colour by which all others are measured
LEAST_PIXELS = 30.0  # the smallest shape of the data covers 157
LEAST_SHARE = 0.75  # of the frames have to agree on colour and shape
LEAST_TRAVEL = 6.0  # pixels from the first frame to the last; the slowest clip of the data travels 13.5
STRAIGHT = 0.5  # motion across, at most, for each pixel of motion along
LARGEST_MISFIT = 0.35  # area where a frame and the fitted shape differ, as a share of the shape's area

# Area of a shape of radius 1, in closed form from `shapes.distance`.
AREAS = {
    "circle": math.pi,
    "ring": 4 * math.pi * 0.8 * 0.28,
    "triangle": 3 * math.sqrt(3) * 0.72**2,
    "cross": 4 * 2 * 0.38 - 4 * 0.38**2,
}


@dataclass(frozen=True)
class Found:
    """What a clip shows; None where frames disagree or nothing was found.

    Attributes:
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
        direction: left, right, up or down.
        misfit: area where frames and the fitted shape differ, as a share of its area; mean over frames, best shape.
    """

    colour: str | None
    shape: str | None
    direction: str | None
    misfit: float

    def matches(self, scene: Scene) -> bool:
        """Whether colour, shape and direction are all right."""
        return (self.colour, self.shape, self.direction) == (scene.colour, scene.shape, scene.direction)


def detect(frames: torch.Tensor) -> Found:
    """Look at a clip.

    Args:
        frames: (frames, 3, height, width) with height equal to width, from 0 to 1.

    Returns:
        What most frames agree on.
    """
    frames = frames.detach().float().cpu()
    looks = [_frame(frame) for frame in frames]
    seen = [look for look in looks if look is not None]
    misfit = sum(look.misfit for look in seen) / len(seen) if seen else math.inf
    colour = _agreed([look.colour for look in seen], len(frames))
    shape = _agreed([look.shape for look in seen if look.misfit <= LARGEST_MISFIT], len(frames))
    direction = _direction(looks) if len(seen) >= LEAST_SHARE * len(frames) else None
    return Found(colour, shape, direction, misfit)


@dataclass(frozen=True)
class _Look:
    """One frame: colour and shape, centre of mass in pixels."""

    colour: str
    shape: str
    misfit: float
    x: float
    y: float


def _frame(frame: torch.Tensor) -> _Look | None:
    """One frame of (3, size, size); None if there is nothing colourful on it."""
    chroma = frame - frame.mean(0)
    strength = frame.amax(0) - frame.amin(0)
    strongest = strength >= strength.flatten().topk(STRONGEST_PIXELS).values[-1]
    if float(strength[strongest].mean()) < LEAST_CHROMA:
        return None
    tint = chroma[:, strongest].mean(1)
    share = (chroma * tint[:, None, None]).sum(0) / tint.square().sum().clamp_min(1e-6)
    # Stretched: faint tints and noise of the background count as none, and a soft edge keeps its place.
    mask = ((share - 0.25) / 0.5).clamp(0, 1)
    area = float(mask.sum())
    if area < LEAST_PIXELS:
        return None
    middles = torch.arange(frame.shape[-1]) + 0.5
    x = float((mask.sum(0) * middles).sum()) / area
    y = float((mask.sum(1) * middles).sum()) / area
    inside = frame[:, mask > 0.9].mean(1)
    shape, misfit = _shape(mask, area, x, y)
    return _Look(_colour(inside), shape, misfit, x, y)


def _colour(rgb: torch.Tensor) -> str:
    """The colour whose hue is nearest."""

    def hue(values: Sequence[float]) -> float:
        return colorsys.rgb_to_hsv(*(min(1.0, max(0.0, float(value))) for value in values))[0]

    found = hue(rgb.tolist())
    return min(COLOURS, key=lambda name: abs((hue(COLOURS[name]) - found + 0.5) % 1 - 0.5))


def _shape(mask: torch.Tensor, area: float, x: float, y: float) -> tuple[str, float]:
    """The shape that covers the mask best when drawn with its centre of mass and area; and its misfit."""
    misfits = {}
    for shape in SHAPES:
        radius = torch.tensor(math.sqrt(area / AREAS[shape]))
        drawn = coverage(shape, torch.tensor(x), torch.tensor(y), radius, mask.shape[-1])
        misfits[shape] = float((drawn - mask).abs().sum()) / area
    best = min(misfits, key=misfits.__getitem__)
    return best, misfits[best]


def _agreed(found: Sequence[str], frames: int) -> str | None:
    """What enough of all frames show."""
    name, times = Counter(found).most_common(1)[0] if found else ("", 0)
    return name if times >= LEAST_SHARE * frames else None


def _direction(looks: Sequence[_Look | None]) -> str | None:
    """The way the centre goes, by a straight line through all frames where it was seen."""
    points = torch.tensor([(number, look.x, look.y) for number, look in enumerate(looks) if look is not None])
    time = points[:, 0] - points[:, 0].mean()
    speed = (time[:, None] * points[:, 1:]).sum(0) / time.square().sum()
    travel_x, travel_y = (float(value) * (len(looks) - 1) for value in speed)
    along, across = max(abs(travel_x), abs(travel_y)), min(abs(travel_x), abs(travel_y))
    if along < LEAST_TRAVEL or across > STRAIGHT * along:
        return None
    if abs(travel_x) > abs(travel_y):
        return "right" if travel_x > 0 else "left"
    return "down" if travel_y > 0 else "up"
