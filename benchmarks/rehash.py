"""Step Rehash on the trained demo pipeline, against every other way to spend fewer evaluations, on held-out runs.

    python -m benchmarks.rehash
    python -m benchmarks.rehash --schedulers ddim --steps 25 --clips 8 --learn 2

A cell is a scheduler, a number of steps and a share of evaluations in full. In each, every held-out caption and seed is
made by every method in one go, in turns: in full, by the planned schedule, by the rule of Streamlined Inference, by
uniform reuse, by Taylor order 1, by DeepCache's rule, and by simply taking fewer steps: as many as the others take in
full, and as many as take the time of the planned one. Errors are of the final latents and of the frames against the
full run of the same seed; accuracy is the share of clips in which the detector sees the caption. Everything runs within
75 % of the memory that the untouched pipeline needs; peaks are of one clip a method, of whatever component needs most,
and of the denoiser, weights included. Seconds are of the denoising loop. Captions and seeds that are learned from are
not those that are measured. Cells that the output file holds already are not run again, so that it can be filled in
several goes, or by two processes of one thread each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sicompiler
from sicompiler.cli.rehash.pipeline import set_scheduler
from sicompiler.demo.detect import detect
from sicompiler.demo.pipeline import MODEL_FOLDER
from sicompiler.demo.quality import Case, call_of, held_out_cases
from sicompiler.demo.words import all_scenes
from sicompiler.pipelines.pipeline import CompiledPipeline, pipeline_state
from sicompiler.pipelines.rehash.calibrate import learn
from sicompiler.pipelines.rehash.trials import Trials, difference, run_call
from sicompiler.pipelines.verify import measured_call
from sicompiler.rehash.choose import deepcache, similar, uniform
from sicompiler.rehash.plan import RehashPlan
from sicompiler.units import format_bytes

SCHEDULERS = ("ddim", "euler", "dpm++2m")
SHARES = {"13/25": 13 / 25, "1/3": 1 / 3}
FEWER, FEWER_AS_FAST = "fewer steps", "fewer steps, as fast"  # as the planned one
PLANNED = "planned"
TRIALS, TRIES = 3, 8  # calls that a plan is tried on, and plans that are tried
AS_FAST = (0.95, 0.9, 0.8, 0.0)  # of the speed of the paper's rule, which leaves out most: the first that is reached
SHARE = 0.75  # of what the untouched pipeline needs: the budget


@dataclass(frozen=True)
class Measured:
    """One clip by one method, against the full run."""

    rel_error: float
    psnr: float
    right: bool
    seconds: float
    full: int  # evaluations


def clip_call(case: Case, steps: int) -> dict[str, Any]:
    """The arguments that make the clip of a case."""
    return call_of(case.scene.caption, case.seed, steps)


def learned_cases(count: int) -> list[Case]:
    """Captions of the training data with seeds of their own: nothing that is measured is learned from."""
    held = {case.scene for case in held_out_cases()}
    scenes = [scene for scene in all_scenes() if scene not in held]
    return [Case(scenes[number * 7 % len(scenes)], 50_000 + number) for number in range(count)]


def one(state: CompiledPipeline, case: Case, steps: int, reference: Any) -> tuple[Any, Measured]:
    """Make a clip and compare it with the full run; the first one made is its own reference."""
    run = run_call(state, clip_call(case, steps))
    found = difference(run, reference or run)
    assert state.rehash is not None
    loop = state.rehash.last
    assert loop is not None
    right = detect(run.frames[0][0]).matches(case.scene)
    full = sum(e.prediction is None for e in loop.evaluations)
    return run, Measured(found.rel_error, found.psnr, right, loop.seconds, full)


def methods(state: CompiledPipeline, full: int, learned: Sequence[dict[str, Any]]) -> dict[str, RehashPlan]:
    """The plan of every method that skips, each with `full` evaluations in full (or as near as its rule comes).

    The planned one is chosen as `compile_for_budget` chooses, by trying plans on calls that were learned from (rules
    are left out, which it may choose as well): the most exact of those that are about as fast as the rule of the paper,
    which leaves out most. Uniform reuse and Taylor get its cut. Rules have no guard here, as they were published.

    The rule of Streamlined Inference gets the cut that leaves least: behind its own, the last temporal layer, nothing
    depends on the step, so that reusing that layer's output and reusing what comes of it are the same. DeepCache's gets
    the cut that leaves most: it runs the outer blocks at every step.
    """
    rehash = state.rehash
    assert rehash is not None
    setting = next(iter(rehash.lessons))
    subject, lessons = rehash.subject(setting), rehash.lessons[setting]
    pool = [p for p in rehash.candidates(setting) if len(p.full) == full]
    trials, paper = Trials(state, setting, learned[:TRIALS]), similar(subject, lessons[0], full, guard=False)
    trials.run(paper)
    (timed,) = trials.corrected([paper])
    planned = as_fast_as(timed.speedup, pool, trials)
    same = next(rows for rows in lessons if rows.cut == planned.cut)
    return {
        PLANNED: planned,
        "similarity": paper,
        "uniform": uniform(subject, same, full, guard=False),
        "taylor": uniform(subject, same, full, order=1, guard=False),
        "deepcache": deepcache(subject, lessons[-1], full, guard=False),
    }


def as_fast_as(speedup: float, pool: Sequence[RehashPlan], trials: Trials) -> RehashPlan:
    """The most exact plan that is nearly as fast as something else, by what trials measure, which varies a little."""
    for share in AS_FAST[:-1]:
        with contextlib.suppress(sicompiler.BadInput):
            return trials.most_exact(pool, share * speedup, TRIES)
    return trials.most_exact(pool, AS_FAST[-1] * speedup, TRIES)


def cell(
    name: str,
    steps: int,
    shares: Mapping[str, float],
    clips: int,
    learned: int,
    model: Path,
    tell: Callable[[int], None],
) -> list[dict[str, Any]]:
    """All methods of one scheduler and number of steps."""
    pipe = sicompiler.demo_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, name)
    request = sicompiler.Rehash(speedup=1.5)
    budget = budget_of(pipe, steps)
    state = pipeline_state(sicompiler.compile_for_budget(pipe, budget, rehash=request), "measure")
    assert state.rehash is not None
    lessons = [clip_call(case, steps) for case in learned_cases(learned)]
    learn(state, lessons)
    setting = next(iter(state.rehash.lessons))
    plans = {share: methods(state, max(round(steps * part), 1), lessons) for share, part in shares.items()}
    for plan in (plan for by_method in plans.values() for plan in by_method.values()):
        state.rehash.plans[setting] = plan
        run_call(state, lessons[0])  # so that no time that is measured holds any planning
    found: dict[tuple[str, str], list[Measured]] = {}
    references: list[Measured] = []
    for number, case in enumerate(held_out_cases(clips)):
        with state.rehash.switched("exact"):
            run, measured = one(state, case, steps, None)
        references.append(measured)
        for share, by_method in plans.items():
            for method, plan in turned(by_method, number):
                state.rehash.plans[setting] = plan
                found.setdefault((share, method), []).append(one(state, case, steps, run)[1])
            planned = by_method[PLANNED]
            for method, count in ((FEWER, len(planned.full)), (FEWER_AS_FAST, round(steps / planned.speedup))):
                with state.rehash.switched("exact"):
                    found.setdefault((share, method), []).append(one(state, case, count, run)[1])
        tell(number + 1)
    rows = []
    for (share, method), measured_runs in found.items():
        plan = plans[share].get(method)
        rows.append(row(name, steps, share, method, plan, measured_runs, references))
        if plan is not None:
            rows[-1] |= peaks(plan, name, steps, model, budget)
    return rows


def budget_of(pipe: Any, steps: int) -> str:
    """The budget of all methods: a share of what a call of the untouched pipeline takes."""
    return f"{int(SHARE * measured_call(pipe, clip_call(held_out_cases(1)[0], steps)).peak_bytes)}B"


def peaks(plan: RehashPlan, name: str, steps: int, model: Path, budget: str) -> dict[str, Any]:
    """Memory of one call by a fresh pipeline: the most of any component, predicted before it ran and measured."""
    pipe = sicompiler.demo_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, name)
    sicompiler.compile_for_budget(pipe, budget, rehash=sicompiler.Rehash(plan=plan))
    state = pipeline_state(pipe, "measure")
    state.measure_calls = True
    pipe(**clip_call(held_out_cases(1)[0], steps))
    phases, denoiser = state.report().phases, f"{plan.component}, "  # in full and skipped
    found: dict[str, Any] = {"budget_bytes": state.budget_bytes, "fits": all(row.fits for row in phases)}
    for head, rows in (("", phases), ("denoiser_", [r for r in phases if r.component.startswith(denoiser)])):
        found[f"{head}predicted_peak_bytes"] = max(row.predicted_peak_bytes or 0 for row in rows)
        found[f"{head}measured_peak_bytes"] = max(row.measured_peak_bytes or 0 for row in rows)
    return found


def turned(by_method: Mapping[str, RehashPlan], number: int) -> Sequence[tuple[str, RehashPlan]]:
    """The methods in turns: another one begins at each clip."""
    rows = list(by_method.items())
    return rows[number % len(rows) :] + rows[: number % len(rows)]


def row(
    name: str,
    steps: int,
    share: str,
    method: str,
    plan: RehashPlan | None,
    rows: Sequence[Measured],
    references: Sequence[Measured],
) -> dict[str, Any]:
    """What is kept of one method in one cell."""
    ratios = [full.seconds / own.seconds for own, full in zip(rows, references, strict=True)]
    errors = sorted(r.rel_error for r in rows)
    return {
        "scheduler": name,
        "steps": steps,
        "share": share,
        "method": method,
        "full": None if plan is None else len(plan.full),
        "full_measured": sorted({r.full for r in rows}),
        "cut": None if plan is None else list(plan.cut_names),
        "snapshots_bytes": None if plan is None else plan.snapshots_bytes,
        "predicted_error": None if plan is None else plan.predicted_error,
        "predicted_speedup": None if plan is None else plan.speedup,
        "clips": len(rows),
        "rel_error": statistics.median(errors),
        "worst_rel_error": errors[-1],
        "psnr": statistics.median(r.psnr for r in rows),
        "accuracy": sum(r.right for r in rows) / len(rows),
        "full_accuracy": sum(r.right for r in references) / len(references),
        "speedup": statistics.median(ratios),
        "seconds": statistics.median(r.seconds for r in rows),
        "full_seconds": statistics.median(r.seconds for r in references),
    }


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the rows, the smallest error of each cell in bold."""
    table = Table(title="Step Rehash on the demo pipeline: medians over held-out clips, against the full run")
    columns = ("scheduler", "steps", "in full", "method", "rel error", "worst", "PSNR", "accuracy", "speed-up", "peak")
    for column in columns:
        table.add_column(column)
    for r in rows:
        cell_rows = [o for o in rows if cell_of(o) == cell_of(r)]
        best = r["rel_error"] == min(o["rel_error"] for o in cell_rows)
        table.add_row(
            r["scheduler"], str(r["steps"]), r["share"], r["method"], f"{r['rel_error']:.4f}",
            f"{r['worst_rel_error']:.4f}", f"{r['psnr']:.1f}", f"{r['accuracy']:.0%} ({r['full_accuracy']:.0%})",
            f"{r['speedup']:.2f}", format_bytes(r["measured_peak_bytes"]) if "fits" in r else "",
            style="bold" if best else "",
        )  # fmt: skip
    console.print(table)


def cell_of(r: Mapping[str, Any]) -> tuple[str, int, str]:
    """What a row was measured for, beside the method."""
    return r["scheduler"], r["steps"], r["share"]


def kept_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of all cells that are done."""
    rows: list[dict[str, Any]] = json.loads(output.read_text())["rows"] if output.exists() else []
    return rows


def main() -> None:
    """Measure every cell that is not in the file yet; write after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedulers", nargs="+", default=list(SCHEDULERS), choices=list(SCHEDULERS))
    parser.add_argument("--steps", nargs="+", type=int, default=[25, 50])
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--learn", type=int, default=6, help="full runs that are learned from")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the demo pipeline")
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rehash.json"))
    options = parser.parse_args()
    console = Console(stderr=True, width=140)
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.schedulers:
        for steps in options.steps:
            done = {cell_of(r) for r in kept_rows(options.output) if r["clips"] >= options.clips}
            shares = {share: SHARES[share] for share in options.shares if (name, steps, share) not in done}
            if not shares:
                continue
            began = time.perf_counter()
            with Progress(console=console) as progress:
                task = progress.add_task(f"{name}, {steps} steps", total=options.clips)
                rows = cell(
                    name, steps, shares, options.clips, options.learn, options.model,
                    lambda n, t=task: progress.update(t, completed=n),
                )  # fmt: skip
            here = {
                "threads": torch.get_num_threads(),
                "command": shlex.join(["python", "-m", "benchmarks.rehash", *sys.argv[1:]]),
            }
            others = [r for r in kept_rows(options.output) if cell_of(r) not in {cell_of(row) for row in rows}]
            kept = {
                "device": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "rows": others + [r | here for r in rows],
            }
            options.output.write_text(json.dumps(kept, indent=2) + "\n")
            console.print(f"{name}, {steps} steps: {time.perf_counter() - began:.0f} s")
            show(rows, console)


if __name__ == "__main__":
    main()
