"""What the demo model's captions can say. Needs no torch: the command line answers a wrong one at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from sicompiler.errors import BadInput

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "yellow": (0.92, 0.86, 0.10),
    "green": (0.12, 0.75, 0.18),
    "cyan": (0.10, 0.82, 0.86),
    "blue": (0.16, 0.22, 0.95),
    "magenta": (0.86, 0.16, 0.84),
}
SHAPES = ("circle", "ring", "triangle", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    Attributes:
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
        direction: a key of `DIRECTIONS`.
    """

    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        """Such as "a red circle moving left"."""
        return f"a {self.colour} {self.shape} moving {self.direction}"


def all_scenes() -> list[Scene]:
    """The 96 scenes of the grammar."""
    return [Scene(*parts) for parts in product(COLOURS, SHAPES, DIRECTIONS)]


def held_out_scenes() -> list[Scene]:
    """The 16 scenes that are never trained on: each pair of a shape and a direction once, in one colour."""
    colours = list(COLOURS)
    pairs = product(enumerate(SHAPES), enumerate(DIRECTIONS))
    return [Scene(colours[(2 * i + j) % len(colours)], shape, way) for (i, shape), (j, way) in pairs]


def training_scenes() -> list[Scene]:
    """The 80 scenes that are trained on."""
    held_out = set(held_out_scenes())
    return [scene for scene in all_scenes() if scene not in held_out]


def check_caption(caption: str) -> None:
    """Make sure that the model was shown every word of a caption.

    Raises:
        BadInput: it was not; names those it knows.
    """
    if caption not in {scene.caption for scene in all_scenes()}:
        raise BadInput(
            f"the demo pipeline can't show {caption!r}; it knows 'a COLOUR SHAPE moving DIRECTION' of "
            f"{', '.join(COLOURS)}; {', '.join(SHAPES)}; {', '.join(DIRECTIONS)}"
        )
