"""Makes the calibration of Step Rehash that comes with the demo pipeline: `sicompiler/demo/rehash.json`.

    python -m benchmarks.demo_ready

The pipeline is calibrated as a user would, on captions and seeds of the training data, in the budget of the demo.
`sicompiler demo` uses the plan only for the very weights, graph, scheduler, steps, guidance and size of these calls,
and holds what it promises against the clip that it makes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import sicompiler
from benchmarks.rehash import budget_of, clip_call, learned_cases
from sicompiler.cli.demo_clip import STEPS
from sicompiler.cli.demo_ready import READY, save_ready

LEARN, HELD_OUT = 4, 2  # calls


def main() -> None:
    """Calibrate and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--output", type=Path, default=READY)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pipe = sicompiler.demo_pipeline()
    pipe.set_progress_bar_config(disable=True)
    calls = [clip_call(case, STEPS) for case in learned_cases(LEARN + HELD_OUT)]
    request = sicompiler.Rehash(speedup=options.speedup, calls=calls, held_out=HELD_OUT)
    sicompiler.compile_for_budget(pipe, budget_of(pipe, STEPS), rehash=request)
    report = sicompiler.rehash_report(pipe)
    if report.plan is None:
        raise SystemExit(f"nothing to write: {report.why}")
    sicompiler.release(pipe)
    save_ready(pipe, report.plan, options.output)
    print(f"{options.output}\n{report}")


if __name__ == "__main__":
    main()
