"""The commands below `sicompiler rehash` and their options. Everything heavy is imported inside a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sicompiler.cli.options import Json, expanded
from sicompiler.cli.rehash.options import Calibration

rehash = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Step Rehash: reuse features between denoising steps. Approximate and opt-in.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan saved by rehash calibrate.", show_default=False)]


@rehash.command(short_help="Learn from full runs, choose a plan, verify it.")
@expanded()
def calibrate(wanted: Calibration, json: Json = False) -> int:
    """Run a pipeline in full a few times, choose which evaluations to skip, and verify that on held-out runs.

    Exactly one of --speedup, --psnr and --rel-error is the target. Prompts are taken in turn, seeds count up. Needs the
    weights and the time of the runs themselves: --runs + --held-out full runs, up to 14 that measure how errors grow,
    five for every plan that is tried on calls that were learned from (up to 16 plans), and --held-out each for every
    plan that is verified, for uniform reuse and for fewer steps. If those are nearer than every plan, that is said.
    """
    from sicompiler.cli.rehash.calibrate import run

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
