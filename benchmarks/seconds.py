"""Seconds that the cost model predicts beside those that plans take, after a calibration of this machine.

    python -m benchmarks seconds --threads 1
    python -m benchmarks seconds svd-vae --output benchmarks/results/seconds.json

Full-width architectures with random weights at small sizes, each unsliced, at 80 % and 50 % of the way from the floor
to the unsliced peak, and at the floor. Pairs of plans that differ by more than 10 % in measured seconds are in the
right order if their predicted ones are. Best while nothing else runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sicompiler.calibration import measure_machine
from sicompiler.calibration.loops import TimedPlan, timed_plans_of
from sicompiler.capture import capture, flatten_inputs
from sicompiler.device import Machine
from sicompiler.machines import description_of
from sicompiler.zoo.build import build_preset

SIZES: Mapping[str, Mapping[str, int]] = {
    "svd-vae": {"frames": 2, "height": 128, "width": 192},
    "ltx-vae": {"frames": 9, "height": 192, "width": 256},
    "animatediff": {"frames": 4, "height": 128, "width": 128},
}
APART = 1.1  # plans nearer to one another than this are in no order


def rows_of(preset: str, machine: Machine) -> list[TimedPlan]:
    """The plans of a preset on the CPU, run."""
    call = build_preset(preset, dtype="float32", fake=False, **SIZES[preset])  # type: ignore[arg-type]
    program = capture(call.module, call.args, call.kwargs, method=call.method)
    inputs = flatten_inputs(call.args, call.kwargs)[0]
    return list(timed_plans_of(preset, call.module, program, inputs, machine, torch.device("cpu")))


def ordered(rows: Sequence[TimedPlan]) -> tuple[int, int]:
    """How many pairs of plans of one model that differ are in the order that was predicted, and how many differ."""
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if a.model == b.model]
    apart = [(a, b) for a, b in pairs if max(a.measured, b.measured) > APART * min(a.measured, b.measured)]
    return sum((a.measured < b.measured) == (a.predicted < b.predicted) for a, b in apart), len(apart)


def main() -> None:
    """Calibrate, run, print, and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    machine = measure_machine(torch.device("cpu"), lambda what, done, total: console.print(f"calibrating: {what}"))
    rows: list[TimedPlan] = []
    for preset in options.presets:
        console.print(preset)
        rows += rows_of(preset, machine)
    right, apart = ordered(rows)
    table = Table(title="seconds of plans on the CPU", title_justify="left")
    for column in ("model", "budget", "predicted", "measured", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        budget = "unsliced" if row.budget_share == 1 else f"{row.budget_share:.0%}" if row.budget_share else "floor"
        numbers = (f"{row.predicted:.3f}", f"{row.measured:.3f}", f"{row.predicted / row.measured:.2f}")
        table.add_row(row.model, budget, *numbers)
    Console(width=110).print(table)
    Console(width=110).print(f"{right} of {apart} pairs that differ by more than 10 % are in the predicted order")
    if options.output is not None:
        report: dict[str, Any] = {
            "machine": description_of("cpu"),
            "figures": asdict(machine),
            "rows": [asdict(row) for row in rows],
            "pairs_apart": apart,
            "pairs_in_order": right,
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
