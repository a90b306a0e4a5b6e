"""How much of each full-size preset the axis rules cover, and how long capture and analysis take.

    python -m benchmarks.coverage svd mochi --output benchmarks/results/coverage.json

All presets by default, from their configuration alone. "capture" is `torch.export` and what follows it up to a graph of
static shapes; "analyse" the stages `clean` and `legal`, sizes, lifetimes, workspace and the axis table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sicompiler.capture import capture
from sicompiler.compiler.analyzed_graph import analyze_graph
from sicompiler.passes.manager import run_stage
from sicompiler.reports.explain import missing, rule_rows
from sicompiler.zoo import build_preset, known_presets


def cover(preset: str) -> dict[str, Any]:
    """Capture and analyse one preset at its default size.

    Args:
        preset: its name.

    Returns:
        Counts of the legal graph, names of the operators without a rule, and wall and CPU seconds.
    """
    call = build_preset(preset)
    clocks = [(time.perf_counter(), time.process_time())]
    program = capture(call.module, call.args, call.kwargs)
    clocks.append((time.perf_counter(), time.process_time()))
    graph = analyze_graph(run_stage("legal", run_stage("clean", program)), "cuda")
    clocks.append((time.perf_counter(), time.process_time()))
    rows = rule_rows(graph.view)
    without = missing(rows)
    return {
        "preset": preset,
        "operators": sum(row.count for row in rows),
        "distinct": len(rows),
        "with_rule": len(rows) - len(without),
        "missing": {row.operator: row.count for row in without},
        "nodes": len(graph.facts.nodes),
        "capture_seconds": clocks[1][0] - clocks[0][0],
        "capture_cpu_seconds": clocks[1][1] - clocks[0][1],
        "analyse_seconds": clocks[2][0] - clocks[1][0],
        "analyse_cpu_seconds": clocks[2][1] - clocks[1][1],
    }


def main() -> None:
    """Cover all presets named, print a table and write it as JSON; exit status 2 where an operator lacks a rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(known_presets()))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the models, about devices this machine lacks
    table = Table(title="legal graphs at full size, fp16", title_justify="left")
    for column in ("preset", "operators", "distinct", "with rule", "nodes", "capture s", "CPU s", "analyse s", "CPU s"):
        table.add_column(column, justify="right")
    rows = []
    for preset in options.presets:
        row = cover(preset)
        rows.append(row)
        gc.collect()
        counts = [str(row[key]) for key in ("operators", "distinct", "with_rule", "nodes")]
        keys = ("capture_seconds", "capture_cpu_seconds", "analyse_seconds", "analyse_cpu_seconds")
        table.add_row(preset, *counts, *[f"{row[key]:.1f}" for key in keys])
    Console(width=120).print(table)
    if options.output is not None:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        command = " ".join(["python -m benchmarks.coverage", *sys.argv[1:]])
        report = {"command": command, "torch": torch.__version__, "machine": machine, "rows": rows}
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    if any(row["missing"] for row in rows):
        sys.exit(2)


if __name__ == "__main__":
    main()
