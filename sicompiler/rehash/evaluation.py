"""What happened at one call of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from sicompiler.planners.skip_schedule import Prediction


@dataclass(frozen=True)
class Evaluation:
    """What happened at one call of the denoiser.

    Attributes:
        step: steps the scheduler had taken.
        branch: calls since the last step.
        prediction: how the feature was predicted; None where it ran in full.
        reason: why it ran in full though the plan would skip, or why what is kept was dropped; empty otherwise.
        guard_error: of a full evaluation after skipped ones: relative error of what would have been predicted here.
        held_bytes: features held while it ran.
        seconds: of the call.
    """

    step: int
    branch: int
    prediction: Prediction | None
    reason: str = ""
    guard_error: float | None = None
    held_bytes: int = 0
    seconds: float = 0.0
