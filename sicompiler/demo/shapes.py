"""The demo model's data: clips of one coloured shape moving in one direction, and their captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sicompiler.demo.words import COLOURS, DIRECTIONS, Scene

FRAMES = 16
SIZE = 48  # pixels, height and width

RADIUS = (8.0, 10.0)  # pixels
SPEED = (0.9, 1.2)  # pixels a frame
BACKGROUND = (0.05, 0.35)  # grey level, of 1
MARGIN = 1.44  # radii from the centre to the point of a shape that reaches furthest: a triangle's top


def distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor | float) -> torch.Tensor:
    """Distance in pixels to the border of a shape whose centre of mass is the origin, negative inside.

    It is exact near the middle of edges and too small outside corners, which is all that drawing needs.

    Args:
        shape: one of `SHAPES`.
        x: pixels to the right.
        y: pixels down; broadcasts with `x` and `radius`.
        radius: of the circle, in pixels; the others are scaled to look about as large.
    """
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.8 * radius).abs() - 0.28 * radius
    if shape == "triangle":  # one corner up; 0.72 radii is the inscribed circle, and corners lie twice as far
        return torch.maximum(0.8660254 * x.abs() - 0.5 * y, y) - 0.72 * radius
    upright = torch.maximum(x.abs() - 0.38 * radius, y.abs() - radius)
    level = torch.maximum(y.abs() - 0.38 * radius, x.abs() - radius)
    return torch.minimum(upright, level)


def coverage(
    shape: str, centre_x: torch.Tensor, centre_y: torch.Tensor, radius: torch.Tensor, size: int
) -> torch.Tensor:
    """How much of every pixel a shape covers.

    Args:
        shape: one of `SHAPES`.
        centre_x: (...), pixels from the left border.
        centre_y: (...), pixels from the top.
        radius: (...), pixels.
        size: height and width of the picture in pixels.

    Returns:
        (..., size, size), from 0 to 1.
    """
    middles = torch.arange(size, dtype=torch.float32) + 0.5
    x = middles[None, :] - centre_x[..., None, None]
    y = middles[:, None] - centre_y[..., None, None]
    return (0.5 - distance(shape, x, y, radius[..., None, None])).clamp(0, 1)


def clip(scene: Scene, generator: torch.Generator, *, frames: int = FRAMES, size: int = SIZE) -> torch.Tensor:
    """One clip: a shape of random size and speed that starts anywhere and stays in the picture, on random grey.

    Returns:
        (frames, 3, size, size), from -1 to 1.

    Raises:
        ValueError: the picture is too small for the largest shape and the fastest motion.
    """
    unit = torch.rand(5, generator=generator)

    def between(low: float, high: float, number: int) -> torch.Tensor:
        return low + (high - low) * unit[number]

    radius = between(*RADIUS, 0)
    way_x, way_y = DIRECTIONS[scene.direction]
    way = way_x + way_y
    travelled = between(*SPEED, 1) * torch.arange(frames)  # speed is in pixels a frame
    margin = float(MARGIN * radius)
    along_room = size - 2 * margin - float(travelled[-1])
    if along_room < 0:
        raise ValueError(f"{frames} frames of {size}x{size} pixels leave no room for a shape of radius {radius:.1f}")
    start = margin + along_room * unit[2]
    along = start + travelled if way > 0 else size - start - travelled
    across = between(margin, size - margin, 3).expand(frames)
    x, y = (along, across) if way_x else (across, along)
    covered = coverage(scene.shape, x, y, radius.expand(frames), size)[:, None]
    colour = torch.tensor(COLOURS[scene.colour])[None, :, None, None]
    picture = between(*BACKGROUND, 4) * (1 - covered) + colour * covered
    return picture * 2 - 1


def clips(scenes: Sequence[Scene], generator: torch.Generator) -> torch.Tensor:
    """One clip a scene.

    Returns:
        (scenes, frames, 3, size, size), from -1 to 1.
    """
    return torch.stack([clip(scene, generator) for scene in scenes])
