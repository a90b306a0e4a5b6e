"""Draw a contact sheet of the demo pipeline: a row a held-out caption, every other frame.

python -m benchmarks.demo_sheet --output docs/images/demo-model.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import torch
from matplotlib.figure import Figure

from sicompiler.demo.pipeline import MODEL_FOLDER
from sicompiler.demo.quality import held_out_cases, make_clips

EVERY = 2  # frames


def main() -> None:
    """Make the clips and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the pipeline")
    parser.add_argument("--clips", type=int, default=8, help="spread over the 64 held-out cases")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--output", type=Path, required=True, help="PNG")
    options = parser.parse_args()
    pipe = diffusers.AnimateDiffPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    cases = held_out_cases(64)[:: max(1, 64 // options.clips - 1)][: options.clips]
    clips = make_clips(pipe, cases, steps=options.steps)[:, ::EVERY]
    rows, columns = clips.shape[:2]
    figure = Figure(figsize=(columns, 1.28 * rows), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for case, frames, axes in zip(cases, clips, grid, strict=True):
        title = axes[0].set_title(f"{case.scene.caption} (seed {case.seed})", loc="left", fontsize=8, pad=3)
        title.set_in_layout(False)  # or the first column would be as wide as its title
        for frame, one in zip(frames, axes, strict=True):
            one.imshow(frame.permute(1, 2, 0).numpy(), interpolation="nearest")
            one.set_axis_off()
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
