"""Make the 64 held-out clips with the demo pipeline, and count in how many a detector sees what the caption says.

    python -m benchmarks.demo_quality
    python -m benchmarks.demo_quality --schedulers ddim --steps 25 --clips 16

One row a scheduler and number of steps: clips with the right colour, shape, direction, and all three; seconds of one
denoiser call for one clip (with guidance: batch 2). Captions and seeds were never trained on. Before anything is
counted, the detector has to be right about clips that were drawn, not made.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sicompiler.cli.rehash.pipeline import set_scheduler
from sicompiler.demo.detect import detect
from sicompiler.demo.pipeline import MODEL_FOLDER
from sicompiler.demo.quality import GUIDANCE, Case, Judged, held_out_cases, judge, make_clips
from sicompiler.demo.shapes import FRAMES, clip
from sicompiler.demo.words import all_scenes

SCHEDULERS = ("ddim", "euler", "dpm++2m")
BATCH = 8  # clips made at once


def detector_accuracy() -> float:
    """Share of drawn clips, two of every scene, that the detector is right about."""
    numbers = torch.Generator().manual_seed(1)
    scenes = all_scenes() * 2
    return sum(detect(clip(scene, numbers) / 2 + 0.5).matches(scene) for scene in scenes) / len(scenes)


def call_seconds(pipe: Any) -> float:
    """Median seconds of a denoiser call as the pipeline makes it for one clip with guidance."""
    unet = pipe.unet
    size = unet.config.sample_size
    noise = torch.randn(2, unet.config.in_channels, FRAMES, size, size)
    text = torch.randn(2 * FRAMES, pipe.tokenizer.model_max_length, unet.config.cross_attention_dim)
    times = []
    with torch.no_grad():
        for _ in range(13):
            began = time.perf_counter()
            unet(noise, 500, encoder_hidden_states=text)
            times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def made(pipe: Any, cases: list[Case], steps: int, guidance: float) -> Iterator[Judged]:
    """The cases, judged as they are made."""
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
        yield from judge(some, make_clips(pipe, some, steps=steps, guidance=guidance))


def row(scheduler: str, steps: int, judged: list[Judged], seconds: float) -> dict[str, Any]:
    """What is kept of one run of all clips."""

    def right(part: str) -> int:
        return sum(getattr(one.found, part) == getattr(one.case.scene, part) for one in judged)

    missed = [
        {
            "caption": one.case.scene.caption,
            "seed": one.case.seed,
            "found": [one.found.colour, one.found.shape, one.found.direction],
            "misfit": round(one.found.misfit, 3),
        }
        for one in judged
        if not one.right
    ]
    return {
        "scheduler": scheduler,
        "steps": steps,
        "clips": len(judged),
        **{part: right(part) for part in ("colour", "shape", "direction")},
        "all": sum(one.right for one in judged),
        "accuracy": sum(one.right for one in judged) / len(judged),
        "median_misfit": round(statistics.median(one.found.misfit for one in judged), 4),
        "seconds": round(seconds, 1),
        "missed": missed,
    }


def main() -> None:
    """Run all choices, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the pipeline")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--steps", nargs="+", type=int, default=[25, 50])
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pipe = diffusers.AnimateDiffPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {
        "command": "python -m benchmarks.demo_quality " + " ".join(sys.argv[1:]),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "guidance": options.guidance,
        "detector_on_drawn_clips": detector_accuracy(),
        "denoiser_call_seconds": round(call_seconds(pipe), 4),
        "rows": [],
    }
    table = Table(title=f"{options.clips} held-out clips, guidance {options.guidance:g}", title_justify="left")
    for column in ("scheduler", "steps", "colour", "shape", "direction", "all", "accuracy", "seconds"):
        table.add_column(column, justify="left" if column == "scheduler" else "right")
    cases = held_out_cases(options.clips)
    with Progress() as bar:
        for name in options.schedulers:
            set_scheduler(pipe, name)
            for steps in options.steps:
                began = time.perf_counter()
                label = f"{name}, {steps} steps"
                judged = list(
                    bar.track(made(pipe, cases, steps, options.guidance), total=len(cases), description=label)
                )
                found = row(name, steps, judged, time.perf_counter() - began)
                report["rows"].append(found)
                cells = [str(found[column]) for column in ("scheduler", "steps", "colour", "shape", "direction", "all")]
                table.add_row(*cells, f"{found['accuracy']:.1%}", f"{found['seconds']:.0f}")
                if (
                    options.output is not None
                ):  # after each row: a long run that is interrupted leaves what it has found
                    options.output.write_text(json.dumps(report, indent=2) + "\n")
    Console(width=120).print(
        table,
        f"detector on drawn clips: {report['detector_on_drawn_clips']:.1%}; "
        f"one denoiser call: {1e3 * report['denoiser_call_seconds']:.0f} ms",
    )


if __name__ == "__main__":
    main()
