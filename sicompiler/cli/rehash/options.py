"""What the commands below `sicompiler rehash` are asked for, as values whose fields are the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sicompiler.cli.options import RequiredGb
from sicompiler.device import Device

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}


PIPELINE_HELP = (
    "A local diffusers folder with a model_index.json and weights, demo for the small trained pipeline that comes with "
    "sicompiler, or package.module:function returning a pipeline."
)


@dataclass(frozen=True)
class Calibration:
    """What `sicompiler rehash calibrate` was asked for. One of `speedup`, `psnr` and `rel_error` is the target."""

    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help=PIPELINE_HELP, show_default=False)]
    gb: RequiredGb
    output: Annotated[Path, typer.Option("--output", "-o", help="Save the plan as JSON.", show_default=False)]
    speedup: Annotated[
        float | None, typer.Option("--speedup", metavar="X", help="At least so many times as fast.", show_default=False)
    ] = None
    psnr: Annotated[
        float | None,
        typer.Option("--psnr", metavar="DB", help="At least, of the frames against full runs.", show_default=False),
    ] = None
    rel_error: Annotated[
        float | None,
        typer.Option("--rel-error", metavar="X", help="At most, of the final latents.", show_default=False),
    ] = None
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line.", show_default=False)
    ] = None
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="A prompt; may be repeated.", show_default=False),
    ] = None
    steps: Annotated[int, typer.Option("--steps", min=2, help="Denoising steps of a run.")] = 25
    runs: Annotated[int, typer.Option("--runs", min=1, help="Full runs to learn from.")] = 4
    held_out: Annotated[int, typer.Option("--held-out", min=0, help="Further runs that verify the plan.")] = 4
    seed: Annotated[int, typer.Option("--seed", help="Of the first run; each has the next one.")] = 0
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help=f"{', '.join(SCHEDULERS)}; by default the pipeline's.", show_default=False),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A further argument of the pipeline's call (height=256, guidance_scale=6, image=@first.png); may be "
            "repeated.",
            show_default=False,
        ),
    ] = None
    lessons: Annotated[
        Path | None,
        typer.Option(
            "--save-lessons",
            metavar="FILE",
            help="Keep what every run shows. The same command goes on from there if it was interrupted.",
            show_default=False,
        ),
    ] = None
    strategy: Annotated[
        str,
        typer.Option("--strategy", help="planned, or a rule to compare with: uniform, taylor, similarity, deepcache."),
    ] = "planned"
    order: Annotated[
        int, typer.Option("--order", min=0, max=2, help="Of the predictor at most; order k keeps k + 1 features.")
    ] = 2
    accept_worse: Annotated[
        bool,
        typer.Option("--accept-worse", help="Keep a plan even where fewer steps that take its time end nearer."),
    ] = False
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 (default), float16 or bfloat16.", show_default=False)
    ] = None
    device: Annotated[
        Device | None,
        typer.Option("--device", help="Run on this device. Default: the accelerator if any.", show_default=False),
    ] = None
