"""What Step Rehash does with the denoising loops of a pipeline."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What becomes of a loop that begins."""

    PLANNED = "planned"  # it runs by the plan of its setting, or is learned from where a user allows that
    EXACT = "exact"  # it is seen, but every evaluation runs by the plan of the whole denoiser
    LEARNING = "learning"  # it is learned from, whatever is known
    RESTING = "resting"  # it is not seen
