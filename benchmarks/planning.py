"""Plan full-size presets from their configuration alone: floors, what fits, seconds by stage and host memory.

    python -m benchmarks.planning svd=3.5 svd-xt=3.9 animatediff=3.1 --output benchmarks/results/planning.json
    python -m benchmarks.planning svd mochi hunyuanvideo --output benchmarks/results/zoo-planning.json
    python -m benchmarks.planning mochi-pipeline=30.65 --output benchmarks/results/planning-half.json
    python -m benchmarks.planning --growth layers frames --output benchmarks/results/planning-growth.json
    python -m benchmarks.planning --capture wan-vae hunyuanvideo --output benchmarks/results/planning-capture.json

Without a budget a preset is planned for several between its floor and its unsliced peak; the row shows the biggest.

Each preset is planned in a process of its own by the command line, so seconds and memory are what a user sees: with an
empty cache, and then once more ("again").
`--growth` plans no preset, but graphs of the same kind from a few hundred nodes to 20,000 (`planning_growth.py`).
`--capture` plans nothing, but tells where the seconds of a capture go (`capture_shares.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.capture_shares import capture_shares
from benchmarks.planning_growth import SERIES, growth
from sicompiler.cache.store import VARIABLE
from sicompiler.units import GIB

GOALS = ("svd=3.5", "svd-xt=3.9", "animatediff=3.1")


def plan(goal: str) -> dict[str, Any]:
    """Plan one preset for one budget.

    Args:
        goal: "preset=gb", or "preset" for several budgets between the floor and the unsliced peak.

    Returns:
        What the command line tells about the plan, seconds and memory.

    Raises:
        SystemExit: it could not be planned; with what the command line says.
    """
    preset, _, gb = goal.partition("=")
    command = [sys.executable, "-m", "sicompiler.cli", "plan", preset, "--json", *(["--gb", gb] if gb else [])]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, VARIABLE: cache}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if not done.stdout:
            sys.exit(f"{goal} could not be planned (exit status {done.returncode}): {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        found["wall_seconds"] = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False, env=environment)
        found["again_seconds"] = time.perf_counter() - began
    found["exit_status"] = done.returncode
    found["host_peak_bytes_so_far"] = after.ru_maxrss * 1024
    return found


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What the table shows of a plan, or of a pipeline: there all bytes are whole, as phases share weights or not."""
    worst = max(row.get("phases", [row]), key=lambda phase: phase["unsliced_peak_bytes"])
    weights = 0 if "phases" in row else row["weights_bytes"]
    return (
        row["model"],
        f"{weights / GIB:.2f}",
        f"{(worst['unsliced_peak_bytes'] - weights) / GIB:.2f}",
        "-" if row["floor_bytes"] is None else f"{(row['floor_bytes'] - weights) / GIB:.3f}",
        f"{row['budget_bytes'] / GIB:.2f}",
        f"{row['predicted_peak_bytes'] / GIB:.2f}",
        "yes" if row["fits"] else "NO",
        ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["seconds"].items()),
        f"{row['cpu_seconds']:.1f}",
        f"{row['wall_seconds']:.1f}",
        f"{row['again_seconds']:.1f}",
        f"{row['host_peak_bytes_so_far'] / GIB:.2f}",
    )


def write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write what was found so far."""
    command = "python -m benchmarks.planning " + " ".join(sys.argv[1:])
    content = {"command": command, "torch": torch.__version__, "rows": rows}
    output.write_text(json.dumps(content, indent=2) + "\n")


def report(found: Iterable[dict[str, Any]], output: Path | None) -> None:
    """Measure one thing after another, and write what there is so far.

    Args:
        found: gives what was measured.
        output: where to write it.
    """
    warnings.filterwarnings("ignore")  # of the models, about devices this machine lacks
    rows = []
    for row in found:
        rows.append(row)
        if output is not None:
            write(output, rows)


def main() -> None:
    """Plan all goals, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("goals", nargs="*", default=list(GOALS), help="preset=gb, or preset")
    parser.add_argument("--growth", nargs="+", choices=list(SERIES), help="how seconds grow with the graph, instead")
    parser.add_argument("--capture", nargs="+", metavar="PRESET", help="where the seconds of captures go, instead")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.growth or options.capture:
        console = Console(width=120)
        rows = growth(options.growth, console) if options.growth else capture_shares(options.capture, console)
        report(rows, options.output)
        return
    table = Table(title="fp16, default sizes, weights resident; GiB", title_justify="left")
    columns = (
        "preset",
        "weights",
        "unsliced",
        "floor",
        "budget",
        "predicted",
        "fits",
        "stages",
        "CPU",
        "wall",
        "again",
        "host",
    )
    for column in columns:
        table.add_column(column, justify="right")
    rows = []
    for goal in options.goals or GOALS:
        row = plan(goal)
        table.add_row(*cells(row))
        loops = {"loops": len(row["regions"])} if "regions" in row else {}
        rows.append({key: value for key, value in row.items() if key != "regions"} | loops)
        if options.output is not None:  # after each row: a long run that is interrupted leaves what it has found
            write(options.output, rows)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
