"""How often the error that was asked for holds: `psnr=` and `rel_error=` on calls that calibration never saw.

    python -m benchmarks.rehash_bound
    python -m benchmarks.rehash_bound --targets rel_error=0.1 --clips 8 --held-out 3

For each target the demo pipeline is calibrated on captions of the training data, with m further calls held out to
verify. With m runs within the target, another run is within it with probability m / (m + 1) if calls are exchangeable.
Here the captions of the fresh runs were never trained on, which is harder than that promise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import sicompiler
from benchmarks.rehash import SCHEDULERS, budget_of, clip_call, learned_cases
from sicompiler.cli.rehash.pipeline import set_scheduler
from sicompiler.demo.pipeline import MODEL_FOLDER
from sicompiler.demo.quality import held_out_cases
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.rehash.trials import difference, run_call

TARGETS = ("psnr=30", "psnr=35", "rel_error=0.1", "rel_error=0.05")


def bound(
    target: str, scheduler: str, steps: int, counts: tuple[int, int, int], model: Path, tell: Callable[[int], None]
) -> dict[str, Any]:
    """Calibrate for a target and see on fresh calls how often it holds.

    Args:
        target: such as "psnr=30".
        scheduler: one of `SCHEDULERS`.
        steps: denoising steps.
        counts: calls that are learned from, held out, and fresh.
        model: folder of the demo pipeline.
        tell: told how many fresh calls were made.
    """
    name, _, value = target.partition("=")
    learned, held_out, fresh = counts
    pipe = sicompiler.demo_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, scheduler)
    calls = [clip_call(case, steps) for case in learned_cases(learned + held_out)]
    request = sicompiler.Rehash(**{name: float(value)}, calls=calls, held_out=held_out)  # type: ignore[arg-type]
    state = pipeline_state(sicompiler.compile_for_budget(pipe, budget_of(pipe, steps), rehash=request), "measure")
    plan = sicompiler.rehash_report(pipe).plan
    assert state.rehash is not None
    assert plan is not None
    assert plan.verified is not None
    found = []
    for number, case in enumerate(held_out_cases(fresh)):
        with state.rehash.switched("exact"):
            reference = run_call(state, clip_call(case, steps))
        found.append(difference(run_call(state, clip_call(case, steps)), reference))
        tell(number + 1)
    within = [f.psnr >= float(value) if name == "psnr" else f.rel_error <= float(value) for f in found]
    return {
        "target": target,
        "scheduler": scheduler,
        "steps": steps,
        "full": len(plan.full),
        "speedup": plan.speedup,
        "held_out": held_out,
        "verified_rel_error": plan.verified.rel_error,
        "verified_psnr": plan.verified.psnr,
        "promised": plan.verified.confidence,
        "clips": fresh,
        "within": sum(within) / fresh,
        "rel_error": statistics.median(f.rel_error for f in found),
        "worst_rel_error": max(f.rel_error for f in found),
        "psnr": statistics.median(f.psnr for f in found),
        "worst_psnr": min(f.psnr for f in found),
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the rows."""
    table = Table(title="How often the error that was asked for holds, on calls that calibration never saw")
    for column in ("target", "scheduler", "steps", "in full", "speed-up", "promised", "held", "worst error", "PSNR"):
        table.add_column(column)
    for r in rows:
        table.add_row(
            r["target"], r["scheduler"], str(r["steps"]), str(r["full"]), f"{r['speedup']:.2f}", f"{r['promised']:.0%}",
            f"{r['within']:.0%} of {r['clips']}", f"{r['worst_rel_error']:.4f}", f"{r['worst_psnr']:.1f}",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Measure every target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="psnr=DB or rel_error=SHARE")
    parser.add_argument("--scheduler", default="ddim", choices=list(SCHEDULERS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--clips", type=int, default=24, help="fresh calls")
    parser.add_argument("--learn", type=int, default=6, help="calls that are learned from")
    parser.add_argument("--held-out", type=int, default=7, help="calls that verify")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rehash-bound.json"))
    options = parser.parse_args()
    console, rows = Console(stderr=True), list[dict[str, Any]]()
    with Progress(console=console) as progress:
        for target in options.targets:
            task = progress.add_task(target, total=options.clips)
            counts = (options.learn, options.held_out, options.clips)
            rows.append(
                bound(
                    target, options.scheduler, options.steps, counts, options.model,
                    lambda n, t=task: progress.update(t, completed=n),
                )
            )  # fmt: skip
            command = f"python -m benchmarks.rehash_bound {' '.join(sys.argv[1:])}".strip()
            kept = {"rows": rows, "threads": torch.get_num_threads(), "torch": torch.__version__, "command": command}
            options.output.write_text(json.dumps(kept, indent=2) + "\n")
    show(rows, console)


if __name__ == "__main__":
    main()
