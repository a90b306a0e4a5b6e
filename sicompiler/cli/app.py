"""The commands and their options. Everything heavy is imported inside a command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sicompiler.cli.cache_app import cache
from sicompiler.cli.options import (
    CardOption,
    DiffOptions,
    Format,
    Gb,
    Json,
    ModelOptions,
    RequiredGb,
    RunOptions,
    Stage,
    budget_option,
    device_of,
    expanded,
)
from sicompiler.cli.rehash.app import rehash
from sicompiler.collector import paused_gc
from sicompiler.device import Device

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Make video diffusion models fit a memory budget, with the same output.",
    epilog="Exit status: 0 done or fits; 2 does not fit or bad input, with one line on stderr; 1 internal error.",
)


app.add_typer(cache, name="cache", short_help="Programs and plans kept on disk: info, clear.")
app.add_typer(rehash, name="rehash", short_help="Reuse features between denoising steps: calibrate, frontier, show.")


def _version(wanted: bool) -> None:
    if wanted:
        from sicompiler._version import __version__

        typer.echo(f"sicompiler {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(short_help="Find the fastest plan that fits a budget.")
@expanded()
def plan(
    options: ModelOptions,
    gb: Gb = None,
    card: CardOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the plan as JSON, for diff and compile_for_budget.")
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option("--snapshot", help="Save a run, planned and unsliced, for torch's memory viewer.", metavar="FILE"),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also tell how much host memory planning took.")] = False,
    untouched: Annotated[
        bool, typer.Option("--untouched/--no-untouched", help="Also tell what the model peaks at as it is.")
    ] = True,
    json: Json = False,
) -> int:
    """Find the fastest plan that fits a budget. Without --gb: the unsliced peak, and what smaller budgets cost.

    No weights are needed and nothing is run, so any machine can plan for any other.
    """
    from sicompiler.cli.answers import recalled

    gb = budget_option(gb, card)
    options = replace(options, device=options.device or device_of(gb))

    def run() -> int:
        with paused_gc():  # imports and graphs, which stay to the end of the process
            from sicompiler.cli.plan import Saved, run

            saved = Saved(output, snapshot)
            return run(options, gb, saved, memory=memory, untouched=untouched, as_json=json)

    if output is not None or snapshot is not None or memory:
        return run()
    return recalled("plan", options, {"gb": gb, "untouched": untouched, "json": json}, run)


@app.command(short_help="Say which frames and sizes fit a budget.")
@expanded("frames", "height", "width", "offload", "planner")
def fit(
    options: ModelOptions,
    gb: RequiredGb,
    frames: Annotated[
        str | None, typer.Option("--frames", metavar="N,N", help="Video frames to look at.", show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW,HxW", help="Heights x widths to look at, in pixels.", show_default=False),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Plan every size in full, which takes long.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the table as a page.")] = None,
    json: Json = False,
) -> int:
    """Say which frames and sizes fit a budget: a table of the predicted peaks, and the unsliced peak as a formula.

    One size is planned in full and three are captured; what they say of all others is exact. Needs no weights.
    """
    from sicompiler.cli.fit import Wanted, run

    return run(options, gb, Wanted(frames, size), html, exact=exact, as_json=json)


@app.command(short_help="Print the program of a stage, with live bytes.")
@expanded("offload", "planner")
def dump(
    options: ModelOptions,
    stage: Annotated[Stage, typer.Option("--stage", help="How far the program has come.")] = Stage.REWRITTEN,
    format: Annotated[
        Format, typer.Option("--format", help="text is readable Python with shapes and live bytes.")
    ] = Format.TEXT,
    gb: Gb = None,
) -> int:
    """Print the program of a stage: as captured, cleaned, legalised, with the plan's regions, or rewritten.

    Planned and rewritten are for the budget of --gb; without it, for the unsliced peak.
    """
    from sicompiler.cli.dump import run

    return run(options, stage, format, gb)


@app.command(short_help="Say what sets peak and floor, and why.")
@expanded("offload", "planner")
def explain(
    options: ModelOptions,
    rules: Annotated[
        bool, typer.Option("--rules", help="The operators of the model and the axis rule of each.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NAME", help="Why is this operator not sliced? Names: dump --stage legal."),
    ] = None,
    axis: Annotated[
        int | None, typer.Option("--axis", metavar="DIM", help="With --node: only this dim of its result.")
    ] = None,
    form: Annotated[
        bool, typer.Option("--form", help="The unsliced peak as a formula in frames, height and width.")
    ] = False,
    json: Json = False,
) -> int:
    """Say who is alive at the peak, what sets the floor and which operators have no rule."""
    from sicompiler.cli.explain import run

    return run(options, node, axis, rules=rules, form=form, as_json=json)


@app.command(short_help="Compare two plans, or two stages of a model.")
@expanded("offload", "planner")
def diff(
    options: DiffOptions,
    second: Annotated[str | None, typer.Argument(metavar="[B]", help="The other plan.", show_default=False)] = None,
    stages: Annotated[
        tuple[Stage, Stage] | None, typer.Option("--stages", help="Compare two stages of model A.", show_default=False)
    ] = None,
    gb: Gb = None,
    json: Json = False,
) -> int:
    """Compare two plans saved by plan --output, or two stages of a model. Exit status 0, different or not."""
    from sicompiler.cli.diff import run

    return run(options, second, stages, gb, as_json=json)


@app.command(short_help="Run compiled and untouched model, and compare.")
@expanded("planner")
def verify(options: RunOptions, gb: RequiredGb, json: Json = False) -> int:
    """Build the model with random weights and run it both ways: largest difference, measured peaks.

    Needs the memory and the time of the model itself. Exit status 1 if the outputs differ by more than rounding, or if
    more memory was taken than predicted: that is a bug of ours.
    """
    from sicompiler.cli.verify import run

    return run(options, gb, as_json=json)


@app.command(short_help="Measure this machine for the cost model.")
def calibrate(
    device: Annotated[
        Device | None,
        typer.Option("--device", help="Measure this device. Default: the accelerator if any.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """Measure how fast this machine multiplies, convolves, attends, moves memory and copies to offload memory.

    Takes under a minute. The figures are kept for this device in the user's data folder, or in that which
    SICOMPILER_CALIBRATION names, and every plan is chosen by them from then on. Peaks do not depend on them.
    """
    from sicompiler.cli.calibrate import run

    return run(device, as_json=json)


@app.command(short_help="Make a clip untouched, in a budget, and with Step Rehash.")
def demo(
    prompt: Annotated[str, typer.Argument(help='As "a COLOUR SHAPE moving DIRECTION".')] = "a red circle moving left",
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of another demo pipeline (examples/train_demo.py makes one)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the starting noise.")] = 0,
    budgets: Annotated[
        bool, typer.Option("--budgets", help="No clip: a UNet with random weights under ever smaller budgets.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures, clips and reports.")] = Path(
        "demo_output"
    ),
    full: Annotated[
        bool, typer.Option("--full", help="Calibrate Step Rehash here, and time every way three times: minutes.")
    ] = False,
    json: Json = False,
) -> int:
    """Make a clip with the small trained pipeline that comes along: untouched, in a budget, and with Step Rehash.

    The budget is 75 % of what the untouched pipeline needs. Takes about a minute on two cores. Prints peaks, times
    and differences, and shows the clips side by side as GIF and MP4. Step Rehash goes by a calibration that comes
    along, if it is for this very model and graph; what it promises is held against the clip.

    With --budgets it runs a UNet (every block of Stable Video Diffusion's, random weights) under ever smaller budgets
    instead, about two minutes, and draws memory over time.
    """
    if budgets:
        from sicompiler.cli.demo_budgets import run as run_budgets

        return run_budgets(output, as_json=json)
    from sicompiler.cli.files import check_folder
    from sicompiler.cli.output import Progress
    from sicompiler.cli.stages import Stages
    from sicompiler.demo.words import check_caption

    check_caption(prompt)
    output = check_folder(output, "the pictures and reports")
    with Progress() as progress:
        stages = Stages("a clip untouched, in a budget and with Step Rehash, in about a minute", progress)
        with stages.stage("loading PyTorch and diffusers"):
            from sicompiler.cli.demo_clip import run
        return run(prompt, model, output, stages, seed=seed, full=full, as_json=json)
