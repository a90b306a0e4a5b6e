"""Loads the trained demo pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sicompiler.demo.parts import import_parts
from sicompiler.errors import BadInput

MODEL_FOLDER = Path(__file__).parent / "model"


def demo_pipeline(folder: str | Path | None = None, *, dtype: torch.dtype | None = None) -> Any:
    """A small trained video diffusion pipeline: 16 frames of 48x48 pixels, a coloured shape that moves.

        frames = sicompiler.demo_pipeline()("a red circle moving left").frames[0]

    Captions follow `a COLOUR SHAPE moving DIRECTION`, with the words of `sicompiler.demo.shapes`. Nothing is
    downloaded: the weights are made by `examples/train_demo.py` (docs/demo-model.md).

    Args:
        folder: where that script put them; by default the one inside this package.
        dtype: of all weights; float32 by default.

    Returns:
        A `diffusers.AnimateDiffPipeline` on the CPU.

    Raises:
        BadInput: diffusers or transformers is not installed; there is no pipeline in the folder.
    """
    diffusers, _ = import_parts()
    found = MODEL_FOLDER if folder is None else Path(folder)
    if not (found / "model_index.json").is_file():
        raise BadInput(
            f"there is no pipeline in {found}; leave the folder out for the one that comes with sicompiler, or train "
            "one with `python examples/train_demo.py --output demo_model` (an hour on two cores)"
        )
    return diffusers.AnimateDiffPipeline.from_pretrained(found, torch_dtype=dtype or torch.float32)
