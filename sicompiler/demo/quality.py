"""How often the demo pipeline makes what its caption asks for: the measurement behind every claim about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sicompiler.demo.detect import Found, detect
from sicompiler.demo.words import Scene, held_out_scenes

FIRST_SEED = 1000
GUIDANCE = 2.0


@dataclass(frozen=True)
class Case:
    """One clip to be made.

    Attributes:
        scene: what it is to show.
        seed: of its starting noise.
    """

    scene: Scene
    seed: int


@dataclass(frozen=True)
class Judged:
    """One clip that was made, and what the detector saw in it."""

    case: Case
    found: Found

    @property
    def right(self) -> bool:
        """Whether colour, shape and direction are all as asked for."""
        return self.found.matches(self.case.scene)


def held_out_cases(count: int = 64) -> list[Case]:
    """Cases of captions that were never trained on, each with a seed of its own; every 16 of them hold all captions."""
    scenes = held_out_scenes()
    return [Case(scenes[number % len(scenes)], FIRST_SEED + number) for number in range(count)]


def call_of(prompt: str, seed: int, steps: int) -> dict[str, Any]:
    """The arguments with which the pipeline makes one clip, as tensors from 0 to 1."""
    return {
        "prompt": prompt,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }


def make_clips(pipe: Any, cases: Sequence[Case], *, steps: int, guidance: float = GUIDANCE) -> torch.Tensor:
    """Run the pipeline on some cases at once.

    Args:
        pipe: an `AnimateDiffPipeline`.
        cases: captions and seeds.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.

    Returns:
        (cases, frames, 3, height, width), from 0 to 1.
    """
    made: torch.Tensor = pipe(
        [case.scene.caption for case in cases],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(case.seed) for case in cases],
        output_type="pt",
    ).frames
    return made


def judge(cases: Sequence[Case], clips: torch.Tensor) -> list[Judged]:
    """What the detector sees in clips.

    Args:
        cases: what they should show.
        clips: (cases, frames, 3, height, width), from 0 to 1.
    """
    return [Judged(case, detect(frames)) for case, frames in zip(cases, clips, strict=True)]
