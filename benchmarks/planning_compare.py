"""Compare the plans of two states of the library: presets at five budgets each, peaks and predicted seconds.

    python -m benchmarks.planning_compare svd wan-vae mochi --output before.json         # on the one state
    python -m benchmarks.planning_compare --like before.json --output after.json         # on the other
    python -m benchmarks.planning_compare --like before.json --against after.json --output compared.json

Budgets are the floor, three between it and the unsliced peak, and that, asked of one planner, which has searched for
the floor. The second run takes the same budgets, and asks a planner of its own for each, as a fresh process would. Exit
status 1: a peak above, or seconds 1 % above those before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sicompiler.capture import Program, capture
from sicompiler.compiler.planner import Planner
from sicompiler.compiler.prepare import analyse
from sicompiler.errors import OverBudget
from sicompiler.zoo.build import ModelCall, build_preset

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the floor to the unsliced peak
SLOWER = 1.01  # times the predicted seconds before


def planner_of(preset: str, call: ModelCall, program: Program) -> Planner:
    """A planner that has searched nothing."""
    return analyse(call.module, program, method=call.method, name=preset, device_type="cuda")


def rows(preset: str, budgets: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """Plan a preset.

    Args:
        preset: which.
        budgets: of another state; its own if not given.

    Yields:
        A row for each budget.
    """
    began = time.process_time()
    call = build_preset(preset)
    program = capture(call.module, call.args, call.kwargs, method=call.method)
    captured = time.process_time() - began
    planner, fresh = planner_of(preset, call, program), budgets is not None
    if budgets is None:
        floor, most = planner.floor()[0], planner.unsliced_bytes
        budgets = [floor + int(share * (most - floor)) for share in SHARES]
    for budget in budgets:
        planner = planner_of(preset, call, program) if fresh else planner
        began = time.process_time()
        try:
            plan = planner.plan(budget)
            answer = {"peak_bytes": plan.predicted_peak_bytes, "seconds": plan.seconds, "regions": len(plan.regions)}
        except OverBudget as error:
            answer = {"floor_bytes": error.floor_bytes}
        seconds = {"capture": captured, "plan": time.process_time() - began}
        yield {"preset": preset, "budget_bytes": budget, **answer, "cpu_seconds": seconds}


def differences(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row after with that before; `worse` says in what."""
    known = {(row["preset"], row["budget_bytes"]): row for row in before}
    compared = []
    for row in after:
        old = known[row["preset"], row["budget_bytes"]]
        worse = [] if "peak_bytes" in row or "peak_bytes" not in old else ["does not fit"]
        if "peak_bytes" in row and "peak_bytes" in old:
            worse += ["peak"] if row["peak_bytes"] > old["peak_bytes"] else []
            worse += ["seconds"] if row["seconds"] > SLOWER * old["seconds"] else []
        compared.append(
            {"preset": row["preset"], "budget_bytes": row["budget_bytes"], "before": old, "after": row, "worse": worse}
        )
    return compared


def main() -> None:
    """Plan or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--like", type=Path, help="rows of the state before, whose budgets are taken")
    parser.add_argument("--against", type=Path, help="rows of the state after: compare, plan nothing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the models, about devices this machine lacks
    before = [] if options.like is None else json.loads(options.like.read_text())["rows"]
    presets = options.presets or list(dict.fromkeys(row["preset"] for row in before))
    done: list[dict[str, Any]] = []
    if options.against is not None:
        done = differences(before, json.loads(options.against.read_text())["rows"])
    for preset in () if options.against else presets:
        budgets = [row["budget_bytes"] for row in before if row["preset"] == preset] or None
        for row in rows(preset, budgets):
            done.append(row)
            print(json.dumps(row), flush=True)
            write(options.output, done)
    write(options.output, done)
    worse = [row for row in done if row.get("worse")]
    print(f"{len(done)} rows, {len(worse)} worse")
    sys.exit(bool(worse))


def write(output: Path | None, done: Sequence[dict[str, Any]]) -> None:
    """Write the rows there are: a long run that is interrupted leaves it."""
    if output is not None:
        output.write_text(json.dumps({"torch": torch.__version__, "rows": list(done)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
