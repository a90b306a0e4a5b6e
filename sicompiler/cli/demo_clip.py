"""`sicompiler demo PROMPT`: a clip untouched, compiled for a budget, and with Step Rehash."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sicompiler.api import compile_for_budget, rehash_report, release
from sicompiler.cli.demo_ready import ready_plan
from sicompiler.cli.output import quiet, show, show_json
from sicompiler.cli.stages import Stages
from sicompiler.demo.pipeline import demo_pipeline
from sicompiler.demo.quality import call_of
from sicompiler.errors import BadInput, StalePlan
from sicompiler.pipelines.pipeline import CompiledPipeline, pipeline_state
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.runs import ending_after, run_call
from sicompiler.pipelines.verify import Measured, measured_call
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.request import Rehash
from sicompiler.reports.clips import save_clips
from sicompiler.reports.rehash import summary
from sicompiler.reports.summary import table
from sicompiler.runtime.verify import errors
from sicompiler.units import format_bytes, format_seconds

STEPS = 25
SHARE = 0.75  # of what the untouched pipeline needs: the budget
SPEEDUPS = (1.4, 1.1)  # the first that is measured to be met: a machine may be busy, or small
ROUNDS, FULL_ROUNDS = 1, 3  # timed runs of each, in turns
LEARNED = ("a green ring moving up", "a blue triangle moving right", "a yellow cross moving down")
UNTOUCHED, EXACT, REHASH = "untouched", "exact", "with Step Rehash"


@dataclass(frozen=True)
class ClipRow:
    """One way to make the clip.

    Attributes:
        label: untouched, exact or with Step Rehash.
        budget_bytes: None for the untouched pipeline.
        peak_bytes: measured, of the whole call, weights included.
        seconds: of a call; the median, where there were several in turns.
        full: denoiser evaluations in full.
        max_abs_error: of the frames, which go from 0 to 1, against the untouched pipeline.
        bitwise: whether they are equal bit for bit.
    """

    label: str
    budget_bytes: int | None
    peak_bytes: int
    seconds: float
    full: int
    max_abs_error: float
    bitwise: bool


@dataclass(frozen=True)
class ShownClips:
    """All that is shown.

    Attributes:
        rows: one a way.
        clips: frames, by way.
        told: of Step Rehash, in words.
    """

    rows: tuple[ClipRow, ...]
    clips: dict[str, torch.Tensor]
    told: str


def run(prompt: str, model: Path | None, output: Path, stages: Stages, *, seed: int, full: bool, as_json: bool) -> int:
    """Run the demo.

    Args:
        prompt: what to show.
        model: folder of a trained demo pipeline; None for the one that comes along.
        output: folder of the clips, which is there.
        stages: are told.
        seed: of the starting noise.
        full: calibrate Step Rehash here and now, and time every way several times.
        as_json: print for machines.

    Returns:
        0; 1 if a measured peak is above the budget.

    Raises:
        BadInput: diffusers or transformers is not installed; there is no pipeline in the folder.
    """
    with quiet():
        with stages.stage("loading the pipeline"):
            pipe = demo_pipeline(model)
            pipe.set_progress_bar_config(disable=True)
        shown = _shown(pipe, lambda: call_of(prompt, seed, STEPS), stages, full=full)
        with stages.stage("writing clips"):
            difference = (shown.clips[REHASH] - shown.clips[UNTOUCHED]).abs().mul(5).clamp(0, 1)
            files = save_clips(output, {**shown.clips, "difference x 5": difference})
    if as_json:
        rows, done = [asdict(row) for row in shown.rows], [asdict(stage) for stage in stages.done]
        show_json({"prompt": prompt, "rows": rows, "stages": done, "files": [str(f) for f in files]})
    else:
        _print(prompt, shown, files)
    return int(any(row.budget_bytes is not None and row.peak_bytes > row.budget_bytes for row in shown.rows))


def _shown(pipe: Any, call: Callable[[], dict[str, Any]], stages: Stages, *, full: bool) -> ShownClips:
    """Each way measured once, then timed in turns by one compiled pipeline."""
    measured: dict[str, Measured] = {}
    with stages.stage("untouched: measuring a call"):
        measured[UNTOUCHED] = measured_call(pipe, call())
    budget = int(SHARE * measured[UNTOUCHED].peak_bytes)
    state, told = _compiled(pipe, budget, call, stages, full=full)
    assert state.rehash is not None
    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
        UNTOUCHED: state.untouched,
        EXACT: partial(state.rehash.running, Mode.EXACT),
        REHASH: nullcontext,
    }
    for name in (EXACT, REHASH):
        with stages.stage(f"{name}: measuring a call"), ways[name]():
            measured[name] = measured_call(pipe, call())
    report = rehash_report(pipe)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with stages.stage("timing, in turns"):
        for _ in range(FULL_ROUNDS if full else ROUNDS):
            for name, way in ways.items():
                with way():
                    began = time.perf_counter()
                    pipe(**call())
                    seconds[name].append(time.perf_counter() - began)
    release(pipe)
    clips = {name: found.output.frames[0] for name, found in measured.items()}
    rows = []
    for name in ways:
        absolute, _, bitwise = errors(clips[name], clips[UNTOUCHED])
        limit = None if name == UNTOUCHED else budget
        evaluations = report.full if name == REHASH else STEPS
        took = statistics.median(seconds[name])
        rows.append(ClipRow(name, limit, measured[name].peak_bytes, took, evaluations, absolute, bitwise))
    if report.plan is None:
        return ShownClips(tuple(rows), clips, f"nothing is skipped: {report.why}")
    off = float((clips[REHASH] - clips[UNTOUCHED]).norm() / clips[UNTOUCHED].norm())
    return ShownClips(tuple(rows), clips, f"{told}\n{summary(report.plan)}\n{_promise(report.plan, off)}")


def _promise(plan: RehashPlan, off: float) -> str:
    """What a plan promises, and what this clip shows."""
    if plan.frames_error is None:
        return f"frames of this clip: relative error {off:.2g}"
    kept = "as promised" if off <= 2 * plan.frames_error else "MORE than promised: calibrate here, with --full"
    return f"frames of this clip: relative error {off:.2g} where {plan.frames_error:.2g} was predicted: {kept}"


def _compiled(
    pipe: Any, budget: int, call: Callable[[], dict[str, Any]], stages: Stages, *, full: bool
) -> tuple[CompiledPipeline, str]:
    """The state of the pipeline, compiled with a plan of Step Rehash for its calls; and where the plan comes from."""
    why = "" if full else _with_ready(pipe, budget, call, stages)
    if full or why:
        if why:
            stages.say(f"{why}; calibrating anew")
        with stages.stage("Step Rehash: calibrating on calls"):
            learned = [call_of(prompt, 1000 + number, STEPS) for number, prompt in enumerate(LEARNED)]
            _calibrate(pipe, f"{budget}B", learned, stages)
    state = pipeline_state(pipe, "demo")
    assert state.rehash is not None
    with stages.stage("exact: planning"), state.rehash.running(Mode.EXACT):
        pipe(**{**call(), "num_inference_steps": 1})  # all components run, at the same sizes
    if full or why:
        with stages.stage("with Step Rehash: a first call"):
            pipe(**call())
    return (
        state,
        "Step Rehash was calibrated here" if full or why else "Step Rehash by the calibration that comes along",
    )


def _with_ready(pipe: Any, budget: int, call: Callable[[], dict[str, Any]], stages: Stages) -> str:
    """Compile with the calibration that comes along; why it can't be used here, empty where it can."""
    try:
        plan = ready_plan(pipe)
        compile_for_budget(pipe, f"{budget}B", rehash=Rehash(plan=plan), progress=stages.progress)
        with stages.stage("with Step Rehash: planning"):
            first = next(i for i, prediction in enumerate(plan.steps) if prediction is not None)
            run_call(pipeline_state(pipe, "demo"), call(), ending_after(first + 1))
    except StalePlan as error:
        return str(error)
    return rehash_report(pipe).why


def _calibrate(pipe: Any, budget: str, learned: list[dict[str, Any]], stages: Stages) -> None:
    """Compile with the largest speed-up that is reached here by a plan that ends nearer than fewer steps.

    Raises:
        BadInput: none is.
    """
    for speedup in SPEEDUPS:
        wanted = Rehash(speedup=speedup, calls=learned, held_out=1)
        try:
            compile_for_budget(pipe, budget, rehash=wanted, progress=stages.progress)
            if rehash_report(pipe).plan is not None:
                return
        except BadInput:
            if speedup == SPEEDUPS[-1]:
                raise


def _print(prompt: str, shown: ShownClips, files: Sequence[Path]) -> None:
    cells = [
        (
            row.label,
            "" if row.budget_bytes is None else format_bytes(row.budget_bytes),
            format_bytes(row.peak_bytes),
            format_seconds(row.seconds),
            f"{row.full} of {STEPS}",
            "0, bit for bit" if row.bitwise else f"{row.max_abs_error:.1e}",
        )
        for row in shown.rows
    ]
    columns = ("", "budget>", "measured peak>", "time>", "evaluations in full>", "largest difference>")
    show(table(f'"{prompt}", {STEPS} steps, {torch.get_num_threads()} threads', columns, cells), shown.told)
    show(*(f"clip: {file}" for file in files))
