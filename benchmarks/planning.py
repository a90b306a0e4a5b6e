"""Plan full-size presets from their configuration alone: floors, what fits, seconds and host memory.

    python -m benchmarks.planning svd=3.5 svd-xt=3.9 animatediff=3.1 --output benchmarks/results/planning.json

Each preset is planned in a process of its own by the command line, so seconds and memory are what a user sees.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sicompiler.units import GIB

GOALS = ("svd=3.5", "svd-xt=3.9", "animatediff=3.1")


def plan(goal: str) -> dict[str, Any]:
    """Plan one preset for one budget.

    Args:
        goal: "preset=gb".
    """
    preset, gb = goal.split("=")
    command = [sys.executable, "-m", "sicompiler.cli", "plan", preset, "--gb", gb, "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    found["wall_seconds"] = time.perf_counter() - began
    found["exit_status"] = done.returncode
    found["host_peak_bytes_so_far"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return found


def main() -> None:
    """Plan all goals, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("goals", nargs="*", default=list(GOALS), help="preset=gb")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    table = Table(title="fp16, 576x1024, CFG batch 2, weights resident; GiB", title_justify="left")
    for column in ("preset", "weights", "unsliced", "floor", "budget", "predicted", "fits", "seconds", "wall", "host"):
        table.add_column(column, justify="right")
    rows = []
    for goal in options.goals or GOALS:
        row = plan(goal)
        weights = row["weights_bytes"]
        table.add_row(
            goal.split("=")[0],
            f"{weights / GIB:.2f}",
            f"{(row['unsliced_peak_bytes'] - weights) / GIB:.2f}",
            f"{(row['floor_bytes'] - weights) / GIB:.3f}",
            goal.split("=")[1],
            f"{row['predicted_peak_bytes'] / GIB:.2f}",
            "yes" if row["fits"] else "NO",
            f"{sum(row['seconds'].values()):.1f}",
            f"{row['wall_seconds']:.1f}",
            f"{row['host_peak_bytes_so_far'] / GIB:.2f}",
        )
        rows.append({key: value for key, value in row.items() if key != "regions"} | {"loops": len(row["regions"])})
    Console().print(table)
    if options.output is not None:
        command = "python -m benchmarks.planning " + " ".join(sys.argv[1:])
        report = {"command": command, "torch": torch.__version__, "rows": rows}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
