"""Loads the trained demo pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sicompiler.demo.parts import import_parts

MODEL_FOLDER = Path(__file__).parent / "model"


def demo_pipeline(*, dtype: torch.dtype | None = None) -> Any:
    """A small trained video diffusion pipeline: 16 frames of 48x48 pixels, a coloured shape that moves.

        frames = sicompiler.demo_pipeline()("a red circle moving left").frames[0]

    Captions follow `a COLOUR SHAPE moving DIRECTION`, with the words of `sicompiler.demo.shapes`. Nothing is
    downloaded: the weights come with the package. docs/demo-model.md says how they were made and how good they are.

    Args:
        dtype: of all weights; float32 by default.

    Returns:
        A `diffusers.AnimateDiffPipeline` on the CPU.

    Raises:
        BadInput: diffusers or transformers is not installed.
    """
    diffusers, _ = import_parts()
    return diffusers.AnimateDiffPipeline.from_pretrained(MODEL_FOLDER, torch_dtype=dtype or torch.float32)
