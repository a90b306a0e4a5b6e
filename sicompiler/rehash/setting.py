"""What a rehash plan depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What a plan depends on.

    Attributes:
        structure: of the denoiser's graph.
        scheduler: class and configuration.
        times: of the evaluations.
    """

    structure: str
    scheduler: str
    times: tuple[float, ...]
