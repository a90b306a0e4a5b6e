"""What Step Rehash would cost and save on full-size denoisers, from configuration alone: no weights, no run.

    python -m benchmarks.rehash_planning svd animatediff
    python -m benchmarks.rehash_planning svd --height 576 --width 1024 --output benchmarks/results/rehash-planning.json

One row a cut: time, operations and bytes left in a skipped evaluation, bytes of a feature, and the smallest budgets
(weights and features included, no offloading) at which a full and a skipped evaluation still fit beside the features
that a predictor of order 0, 1 and 2 holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sicompiler.capture import Program, capture
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.compiler.planner import Planner
from sicompiler.compiler.prepare import analyse
from sicompiler.compiler.search import whole_seconds_of
from sicompiler.cost import work_of
from sicompiler.device import device_kind
from sicompiler.passes.manager import run_stage
from sicompiler.passes.split_at_cut import full_program, skip_program
from sicompiler.planners.min_cut import candidate_cuts
from sicompiler.units import GIB, MIB
from sicompiler.zoo.build import build_preset

ORDERS = (0, 1, 2)


def work(graph: AnalyzedGraph) -> tuple[float, float]:
    """Floating point operations and bytes moved of a graph."""
    rows = [work_of(graph.facts, p, graph.view.table.operands[p]) for p in range(len(graph.facts.nodes))]
    moved = sum(w.activation_bytes + w.weight_bytes + w.kernel_bytes for w in rows[graph.facts.num_placeholders :])
    return sum(w.matrix_flops + w.vector_flops for w in rows[graph.facts.num_placeholders :]), moved


def rows_of(preset: str, sizes: dict[str, Any], console: Console) -> list[dict[str, Any]]:
    """One row a cut of a preset."""
    call = build_preset(preset, fake=True, **sizes)
    device_type = next(call.module.parameters()).device.type

    def planned(program: Program) -> Planner:
        return analyse(call.module, program, method=call.method, name=preset, device_type=device_type)

    with console.status(f"{preset}: capturing and planning the whole"):
        clean = run_stage("clean", capture(call.module, call.args, call.kwargs, method=call.method))
        graph = analyze_graph(clean, device_type)
        cuts = candidate_cuts(graph.facts, whole_seconds_of(graph, device_kind(device_type).machine))
        whole, (flops, moved) = planned(clean), work(graph)
    found = []
    for cut in cuts:
        with console.status(f"{preset}: cut at {cut.share:.0%}"):
            later = skip_program(clean, cut.positions)
            full, skip = planned(full_program(clean, cut.positions)), planned(later)
            left = work(analyze_graph(later, device_type))
        found.append(
            {
                "preset": preset,
                "cut": [graph.facts.nodes[p].name for p in cut.positions],
                "time_left": cut.share,
                "flops_left": left[0] / flops,
                "bytes_left": left[1] / moved,
                "feature_bytes": cut.nbytes,
                "weights_bytes": whole.weights_bytes,
                "exact_floor_bytes": whole.floor()[0],
                "exact_unsliced_bytes": whole.unsliced_bytes,
                # a full evaluation holds what the guard compares with, a skipped one all but the feature it is given
                "floor_bytes": {
                    str(order): max(
                        full.floor()[0] + (order + 1) * cut.nbytes,
                        skip.floor()[0] + (order + 1 if order else 0) * cut.nbytes,
                    )
                    for order in ORDERS
                },
            }
        )
    return found


def main() -> None:
    """Plan, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True)
    sizes = {"frames": options.frames, "height": options.height, "width": options.width}
    rows = [row for preset in options.presets for row in rows_of(preset, sizes, console)]
    table = Table(title="Step Rehash, planned: what a skipped evaluation leaves, and the budgets it still fits")
    for column in ("preset", "cut", "time", "FLOPs", "bytes", "feature MiB", "exact floor GiB", "order 0", "1", "2"):
        table.add_column(column)
    for r in rows:
        table.add_row(
            r["preset"], ", ".join(r["cut"]), f"{r['time_left']:.1%}", f"{r['flops_left']:.1%}",
            f"{r['bytes_left']:.1%}", f"{r['feature_bytes'] / MIB:.0f}", f"{r['exact_floor_bytes'] / GIB:.2f}",
            *(f"{r['floor_bytes'][str(order)] / GIB:.2f}" for order in ORDERS),
        )  # fmt: skip
    Console().print(table)
    if options.output is not None:
        command = f"python -m benchmarks.rehash_planning {' '.join(sys.argv[1:])}"
        options.output.write_text(json.dumps({"command": command, **sizes, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
