"""Run a full-width video UNet or decoder on this machine, untouched and compiled in turns, at several budgets.

    python -m benchmarks.full_width svd --frames 14 --height 256 --width 448 --dtype float32 --rounds 3
    python -m benchmarks.full_width svd-vae --frames 8 --height 256 --width 448 --dtype float32 --rounds 3
    python -m benchmarks.full_width sd-vae --frames 8 --height 256 --width 448 --dtype float32 --rounds 3

All parameters of the real architecture, random weights. For each budget one run is measured: measured <= predicted <=
budget, and the error against the untouched model. Then come the rounds, timed and not measured: untouched and compiled
in turns, the one that begins changing from round to round; the time ratio is the median of theirs. Peaks are of
activations: what the run allocates plus its inputs; the weights are resident in both. Budgets `offload` (half way from
the floor down to that with offloading) and `offload-floor` spill values and stream weights; their peaks include fetched
weights and leave out resident ones only.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sicompiler.api import prepare
from sicompiler.capture import flatten_inputs
from sicompiler.capture.entry import bound_method
from sicompiler.device import synchronize
from sicompiler.machines import description_of
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.measure import Peak, measure_peak
from sicompiler.runtime.placement import place
from sicompiler.runtime.verify import errors
from sicompiler.units import MIB, format_bytes
from sicompiler.zoo.build import build_preset

SHARES = {"100%": 1.0, "50%": 0.5, "25%": 0.25, "floor": 0.0}
OFFLOAD_SHARES = {"offload": 0.5, "offload-floor": 0.0}  # of the way from the floor with offloading to that without


def measured_run(run: Callable[[], Any], device: str) -> tuple[Peak, Any]:
    """Peak and result of one call. It is not timed: measuring costs the side that allocates more often more."""
    gc.collect()
    with measure_peak(device) as peak:
        result = run()
    return peak, result


def timed_run(run: Callable[[], Any], device: str) -> float:
    """Seconds of one call."""
    gc.collect()
    began = time.perf_counter()
    run()
    synchronize(torch.device(device))
    return time.perf_counter() - began


def timed_turns(
    untouched: Callable[[], Any], compiled: Callable[[], Any], rounds: int, device: str
) -> list[tuple[float, float]]:
    """Seconds of both in each round. Who begins changes, so that a machine that warms up or slows down favours none."""
    found = []
    for turn in range(rounds):
        order = (untouched, compiled) if turn % 2 == 0 else (compiled, untouched)
        seconds = {run: timed_run(run, device) for run in order}
        found.append((seconds[untouched], seconds[compiled]))
    return found


def main() -> None:
    """Measure and print a table; write it as JSON with versions, hardware and command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=1, help="timed turns a budget; 0 measures memory only")
    parser.add_argument("--budgets", nargs="+", default=list(SHARES), choices=[*SHARES, *OFFLOAD_SHARES])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True)
    with console.status("building the model"):
        call = build_preset(
            options.preset,
            frames=options.frames,
            height=options.height,
            width=options.width,
            dtype=options.dtype,
            fake=False,
        )
        model = call.module.to(options.device)
        args, kwargs = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(options.device), (call.args, call.kwargs)
        )
    with console.status("capturing and planning"):
        _, planner = prepare(model, args, kwargs, name=options.preset, method=call.method)
    weights, unsliced = planner.weights_bytes, planner.unsliced_bytes - planner.weights_bytes
    floor = planner.floor()[0] - weights
    console.print(f"unsliced {format_bytes(unsliced)}, floor {format_bytes(floor)}, weights {format_bytes(weights)}")
    flat, _ = flatten_inputs(args, kwargs)
    inputs = sum(t.untyped_storage().nbytes() for t in flat if isinstance(t, torch.Tensor))

    def untouched() -> Any:
        with torch.no_grad():
            return bound_method(model, call.method)(*args, **kwargs)

    with console.status("measuring the untouched model"):
        before, reference = measured_run(untouched, options.device)
    rows = []
    for name in options.budgets:
        if name in OFFLOAD_SHARES:
            lowest = planner.floor("auto")[0]
            budget = lowest + int((floor + weights - lowest) * OFFLOAD_SHARES[name])
            plan = planner.plan(budget, offload="auto")
        else:
            budget = weights + max(int(unsliced * SHARES[name]), floor)
            plan = planner.plan(budget)
        place(model, plan.streamed, torch.device(options.device))
        run = functools.partial(Executable(planner.rewrite(plan), plan).run, model, flat)
        measured, result = measured_run(run, options.device)
        absolute, relative, bitwise = errors(result, reference)
        del result
        turns = timed_turns(untouched, run, options.rounds, options.device)
        for turn, (theirs, ours) in enumerate(turns):
            console.print(f"{name} turn {turn + 1}: {ours:.2f} s / {theirs:.2f} s = {ours / theirs:.3f}")
        rows.append(
            {
                "budget": name,
                "budget_bytes": budget - plan.weights_bytes,
                "predicted_bytes": plan.predicted_peak_bytes - plan.weights_bytes,
                "resident_weights_bytes": plan.weights_bytes,
                "spilled": len(plan.spilled),
                "moved_bytes": plan.moved_bytes,
                "measured_bytes": measured.bytes + inputs,
                "reserved_bytes": measured.reserved_bytes,
                "untouched_bytes": before.bytes + inputs,
                "regions": len(plan.regions),
                "outer": plan.outer.axis if plan.outer else None,
                "max_abs_error": absolute,
                "max_rel_error": relative,
                "bitwise": bitwise,
                "time_ratio": statistics.median(ours / theirs for theirs, ours in turns) if turns else None,
                "seconds": statistics.median(ours for _, ours in turns) if turns else None,
                "untouched_seconds": statistics.median(theirs for theirs, _ in turns) if turns else None,
                "turns": turns,
                "predicted_seconds": plan.seconds,
            }
        )
        report = {
            "preset": options.preset,
            "phase": planner.phase,
            "sizes": vars(call.sizes) if hasattr(call.sizes, "__dict__") else str(call.sizes),
            "dtype": options.dtype,
            "device": description_of(options.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "command": "python -m benchmarks.full_width " + " ".join(sys.argv[1:]),
            "weights_bytes": weights,
            "unsliced_bytes": unsliced,
            "floor_bytes": floor,
            "rows": rows,
        }
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=2, default=str) + "\n")
    _print(rows, options.preset)


def _print(rows: list[dict[str, Any]], preset: str) -> None:
    table = Table(title=f"{preset}: activations in MiB, weights resident", title_justify="left")
    for column in (
        "budget",
        "MiB",
        "predicted",
        "measured",
        "pred/meas",
        "untouched",
        "regions",
        "time ratio",
        "max rel error",
        "holds",
        "within 5 %",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        holds = row["measured_bytes"] <= row["predicted_bytes"] <= row["budget_bytes"]
        table.add_row(
            row["budget"],
            *(f"{row[key] / MIB:.1f}" for key in ("budget_bytes", "predicted_bytes", "measured_bytes")),
            f"{row['predicted_bytes'] / row['measured_bytes']:.3f}",
            f"{row['untouched_bytes'] / MIB:.1f}",
            str(row["regions"]),
            f"{row['time_ratio']:.3f}" if row["time_ratio"] else "-",
            "bitwise" if row["bitwise"] else f"{row['max_rel_error']:.1e}",
            "yes" if holds else "NO",
            "yes" if row["predicted_bytes"] <= 1.05 * row["measured_bytes"] else "NO",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
