"""The commands below `sicompiler rehash` and their options. Everything heavy is imported inside a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sicompiler.cli.options import Json, RequiredGb
from sicompiler.cli.rehash.options import SCHEDULERS, Calibration
from sicompiler.device import Device

rehash = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Step Rehash: reuse features between denoising steps. Approximate and opt-in.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

PIPELINE_HELP = (
    "A local diffusers folder with a model_index.json and weights, demo for the small trained pipeline that comes with "
    "sicompiler, or package.module:function returning a pipeline."
)
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan saved by rehash calibrate.", show_default=False)]


@rehash.command(short_help="Learn from full runs, choose a plan, verify it.")
def calibrate(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help=PIPELINE_HELP, show_default=False)],
    gb: RequiredGb,
    output: Annotated[Path, typer.Option("--output", "-o", help="Save the plan as JSON.", show_default=False)],
    speedup: Annotated[
        float | None, typer.Option("--speedup", metavar="X", help="At least so many times as fast.", show_default=False)
    ] = None,
    psnr: Annotated[
        float | None,
        typer.Option("--psnr", metavar="DB", help="At least, of the frames against full runs.", show_default=False),
    ] = None,
    rel_error: Annotated[
        float | None,
        typer.Option("--rel-error", metavar="X", help="At most, of the final latents.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line.", show_default=False)
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="A prompt; may be repeated.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Denoising steps of a run.")] = 25,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Full runs to learn from.")] = 4,
    held_out: Annotated[int, typer.Option("--held-out", min=0, help="Further runs that verify the plan.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Of the first run; each has the next one.")] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help=f"{', '.join(SCHEDULERS)}; by default the pipeline's.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A further argument of the pipeline's call (height=256, guidance_scale=6, image=@first.png); may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    save_lessons: Annotated[
        Path | None,
        typer.Option(
            "--save-lessons",
            metavar="FILE",
            help="Keep what every run shows. The same command goes on from there if it was interrupted.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option("--strategy", help="planned, or a rule to compare with: uniform, taylor, similarity, deepcache."),
    ] = "planned",
    order: Annotated[
        int, typer.Option("--order", min=0, max=2, help="Of the predictor at most; order k keeps k + 1 features.")
    ] = 2,
    accept_worse: Annotated[
        bool,
        typer.Option("--accept-worse", help="Keep a plan even where fewer steps that take its time end nearer."),
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 (default), float16 or bfloat16.", show_default=False)
    ] = None,
    device: Annotated[
        Device | None,
        typer.Option("--device", help="Run on this device. Default: the accelerator if any.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """Run a pipeline in full a few times, choose which evaluations to skip, and verify that on held-out runs.

    Exactly one of --speedup, --psnr and --rel-error is the target. Prompts are taken in turn, seeds count up. Needs the
    weights and the time of the runs themselves: --runs + --held-out full runs, up to 14 that measure how errors grow,
    five for every plan that is tried on calls that were learned from (up to 16 plans), and --held-out each for every
    plan that is verified, for uniform reuse and for fewer steps. If those are nearer than every plan, that is said.
    """
    from sicompiler.cli.rehash.calibrate import run

    wanted = Calibration(
        pipeline,
        gb,
        speedup,
        psnr,
        rel_error,
        prompts,
        tuple(prompt or ()),
        steps,
        runs,
        held_out,
        seed,
        scheduler,
        tuple(settings or ()),
        None if device is None else device.value,
        dtype,
        output,
        save_lessons,
        strategy,
        order,
        accept_worse,
    )
    return run(wanted, as_json=json)


@rehash.command(short_help="Print what else could be had, and draw it.")
def frontier(
    plan: PlanFile,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw error against speed-up: PNG, SVG or PDF.", show_default=False
        ),
    ] = None,
    lessons: Annotated[
        Path | None,
        typer.Option(
            "--lessons",
            metavar="FILE",
            help="With --plot: lessons of the calibration, for what other methods are predicted to give at every cut.",
            show_default=False,
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="FILE",
            help="With --plot: a result of the benchmark (JSON rows with method, speedup, rel_error).",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Print the smallest predicted error for every number of full evaluations, fastest first."""
    from sicompiler.cli.rehash.show import frontier as run

    return run(plan, plot, lessons, measured, as_json=json)


@rehash.command(short_help="Print a plan, evaluation by evaluation.")
def show(plan: PlanFile, json: Json = False) -> int:
    """Print a plan: its totals, and for every evaluation whether it skips, from what, and what is held meanwhile."""
    from sicompiler.cli.rehash.show import show as run

    return run(plan, as_json=json)
