"""Step Rehash as users meet it: `compile_for_budget(..., rehash=Rehash(speedup=...))`, then calls; frames are compared.

    python -m benchmarks.rehash_product
    python -m benchmarks.rehash_product --schedulers ddim --guidance 7.5 --clips 6 --ways calls

A cell is a scheduler, a scale of guidance and a way: with calls to calibrate on, or without, as everybody tries first.
In each, every held-out caption and seed is made in turns: in full, with Step Rehash, and with as many steps in full as
take the time of that. Errors are of frames and of final latents against the full run of the same seed, seconds are of
whole calls. Nothing that is measured was calibrated on. Cells that the output file holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sicompiler
from benchmarks.rehash import SCHEDULERS, budget_of, clip_call, learned_cases
from sicompiler.cli.rehash.pipeline import set_scheduler
from sicompiler.demo.quality import Case, held_out_cases

WAYS = ("calls", "no calls")
LEARN, HELD_OUT = 4, 2  # calls
CALIBRATION = 3  # how plans are chosen, by number: 2 since decision 36, 3 since what it says later; none before


@dataclass(frozen=True)
class Clip:
    """One call of a pipeline: its frames, its final latents, the seconds of all of it."""

    frames: torch.Tensor
    latents: torch.Tensor
    seconds: float


def clip(pipe: Any, case: Case, steps: int, guidance: float) -> Clip:
    """Make a clip by the pipeline's own call."""
    seen: list[torch.Tensor] = []

    def last(_: Any, step: int, time_of: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen[:] = [values["latents"]]
        return values

    began = time.perf_counter()
    call = {**clip_call(case, steps), "guidance_scale": guidance}
    frames = torch.as_tensor(pipe(**call, callback_on_step_end=last).frames).float()
    return Clip(frames, seen[0].float(), time.perf_counter() - began)


def off(own: torch.Tensor, full: torch.Tensor) -> float:
    """Relative error, by 2-norms."""
    return float((own - full).norm() / full.norm())


def pipeline(scheduler: str) -> Any:
    """The demo pipeline with a scheduler."""
    pipe = sicompiler.demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, scheduler)
    return pipe


def cell(
    scheduler: str, guidance: float, way: str, speedup: float, steps: int, clips: int, tell: Callable[[int], None]
) -> dict[str, Any]:
    """Measure one scheduler, guidance and way."""
    row: dict[str, Any] = {"scheduler": scheduler, "guidance": guidance, "way": way, "steps": steps, "asked": speedup}
    plain, own = pipeline(scheduler), pipeline(scheduler)
    budget = budget_of(plain, steps)
    sicompiler.compile_for_budget(plain, budget)
    calls = [{**clip_call(case, steps), "guidance_scale": guidance} for case in learned_cases(LEARN + HELD_OUT)]
    request = sicompiler.Rehash(speedup=speedup, **({"calls": calls, "held_out": HELD_OUT} if way == "calls" else {}))
    began = time.perf_counter()
    try:
        sicompiler.compile_for_budget(own, budget, rehash=request)
    except sicompiler.BadInput as error:
        return row | {"refused": str(error)}
    row["calibration_seconds"] = time.perf_counter() - began
    clip(own, learned_cases(1)[0], steps, guidance)  # plans and, without calls, the call that might be learned from
    report = sicompiler.rehash_report(own)
    if report.plan is None:
        row["nothing_skipped"] = report.why
    fewer = steps if report.plan is None else math.ceil(steps / report.plan.loop_speedup)
    clip(plain, learned_cases(1)[0], steps, guidance)
    clip(plain, learned_cases(1)[0], fewer, guidance)
    made: list[tuple[Clip, Clip, Clip]] = []
    for number, case in enumerate(held_out_cases(clips)):
        full = clip(plain, case, steps, guidance)
        made.append((full, clip(own, case, steps, guidance), clip(plain, case, fewer, guidance)))
        tell(number + 1)
    if report.plan is not None:
        row |= {
            "full": len(report.plan.full),
            "predicted_frames": report.plan.frames_error,
            "predicted_latents": report.plan.predicted_error,
            "predicted_speedup": report.plan.speedup,
        }
    return row | measured(made) | {"fewer_steps": fewer, "clips": clips}


def measured(made: Sequence[tuple[Clip, Clip, Clip]]) -> dict[str, float]:
    """Medians and worst of all clips: in full, with Step Rehash, with fewer steps."""
    figures = {"speedup": statistics.median(full.seconds / own.seconds for full, own, _ in made)}
    figures["fewer_speedup"] = statistics.median(full.seconds / few.seconds for full, _, few in made)
    for name, place in (("rehash", 1), ("fewer", 2)):
        for what in ("frames", "latents"):
            errors = [off(getattr(row[place], what), getattr(row[0], what)) for row in made]
            figures[f"{name}_{what}"], figures[f"{name}_{what}_worst"] = statistics.median(errors), max(errors)
    return figures


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the rows: errors of frames, median (worst)."""
    table = Table(title="Step Rehash by compile_for_budget, against the full run: relative error of frames")
    for column in (
        "scheduler",
        "guidance",
        "way",
        "in full",
        "rehash",
        "predicted",
        "fewer steps",
        "speed-up",
        "asked",
    ):
        table.add_column(column)
    for r in rows:
        head = (r["scheduler"], f"{r['guidance']:g}", r["way"])
        if "rehash_frames" not in r:
            table.add_row(*head, "", f"refused: {r['refused']}", "", "", "", f"{r['asked']:g}")
            continue
        predicted = r.get("predicted_frames")
        table.add_row(
            *head, str(r.get("full", "all")), f"{r['rehash_frames']:.4f} ({r['rehash_frames_worst']:.4f})",
            "" if predicted is None else f"{predicted:.4f}",
            f"{r['fewer_frames']:.4f} ({r['fewer_frames_worst']:.4f}), {r['fewer_steps']}",
            f"{r['speedup']:.2f}", f"{r['asked']:g}",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Measure every cell that is not in the file yet; write after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedulers", nargs="+", default=list(SCHEDULERS), choices=list(SCHEDULERS))
    parser.add_argument("--guidance", nargs="+", type=float, default=[2.0, 7.5])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rehash-product.json"))
    options = parser.parse_args()
    console = Console(stderr=True, width=150)
    logging.getLogger("sicompiler").addHandler(logging.StreamHandler())
    if options.threads:
        torch.set_num_threads(options.threads)
    cells = [(s, g, w) for s in options.schedulers for g in options.guidance for w in options.ways]
    for scheduler, guidance, way in cells:
        kept = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
        key = {"scheduler": scheduler, "guidance": guidance, "way": way, "steps": options.steps}
        key["asked"] = options.speedup
        if any(all(r[name] == value for name, value in key.items()) for r in kept):
            continue
        with Progress(console=console) as progress:
            task = progress.add_task(f"{scheduler}, guidance {guidance:g}, {way}", total=options.clips)
            figures = cell(
                scheduler, guidance, way, options.speedup, options.steps, options.clips,
                lambda n, t=task: progress.update(t, completed=n),
            )  # fmt: skip
        command = shlex.join(["python", "-m", "benchmarks.rehash_product", *sys.argv[1:]])
        kept.append(figures | {"calibration": CALIBRATION, "threads": torch.get_num_threads(), "command": command})
        device = platform.processor() or platform.machine()
        whole = {"device": device, "torch": torch.__version__, "rows": kept}
        options.output.write_text(json.dumps(whole, indent=2) + "\n")
        show(kept, console)


if __name__ == "__main__":
    main()
