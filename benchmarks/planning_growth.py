"""How the seconds before a plan grow with the graph: one architecture by its layers, a causal decoder by its frames.

Part of `python -m benchmarks planning --growth`. The search is the first, with everything on the device. Seconds are
those of this process, so that a busy machine counts for little. The exponent is the slope of a least-squares line
through the logarithms of nodes and seconds: 1 is linear.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sicompiler.capture import capture
from sicompiler.collector import paused_gc
from sicompiler.compiler.analyzed_graph import analyze_graph, outer_loops
from sicompiler.compiler.search import make_search
from sicompiler.device import device_kind
from sicompiler.passes.manager import run_stage
from sicompiler.zoo.build import ModelCall, build_model, build_preset, preset_named

DEVICE = "cuda"
STAGES = ("capture", "analyse", "search")


@dataclass(frozen=True)
class Series:
    """Graphs of the same kind, from small to large.

    Attributes:
        title: what grows.
        build: the model and its call, by how much of it there is.
        sizes: how much.
    """

    title: str
    build: Callable[[int], ModelCall]
    sizes: tuple[int, ...]


@dataclass
class Clock:
    """Seconds of this process by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.process_time)

    def lap(self, stage: str) -> None:
        """Everything since the last lap was this stage."""
        now = time.process_time()
        self.seconds[stage], self._since = now - self._since, now


def _layers(count: int) -> ModelCall:
    preset = preset_named("wan2.1-1.3b")
    config = {**preset.config, "num_layers": count}
    return build_model(preset.name, preset.class_name, config, {}, default_sizes=preset.sizes)


def _frames(count: int) -> ModelCall:
    return build_preset("wan-vae", frames=count)


SERIES: Mapping[str, Series] = MappingProxyType(
    {
        "layers": Series("WanTransformer3DModel by layers", _layers, (2, 4, 9, 18, 36, 72, 145)),
        "frames": Series("AutoencoderKLWan decoding by frames", _frames, (1, 5, 9, 17, 37, 73)),
    }
)


def measure(series: Series, size: int) -> dict[str, Any]:
    """Seconds of every stage before a plan, for one graph of a series.

    Args:
        series: where it belongs.
        size: how much of it there is.
    """
    call = series.build(size)
    clock = Clock()
    program = capture(call.module, call.args, call.kwargs, method=call.method)
    clock.lap("capture")
    graph = analyze_graph(run_stage("legal", run_stage("clean", program)), DEVICE)
    clock.lap("analyse")
    with paused_gc():
        regions = [region for _, region in outer_loops(graph)]
        problem = make_search(graph, None, regions, device_kind(DEVICE).machine, None).problem
    clock.lap("search")
    gc.collect()
    found = {"size": size, "nodes": len(graph.facts.nodes), "candidates": len(problem.candidates)}
    return {**found, "seconds": clock.seconds}


def exponents(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each stage, the exponent of nodes with which its seconds grow.

    Args:
        rows: from `measure`, of one series.
    """
    nodes = np.log([row["nodes"] for row in rows])
    return {stage: float(np.polyfit(nodes, np.log([row["seconds"][stage] for row in rows]), 1)[0]) for stage in STAGES}


def growth(names: Sequence[str], console: Console) -> Iterator[dict[str, Any]]:
    """Measure series and print each as a table.

    Args:
        names: of `SERIES`.
        console: where to print.

    Yields:
        For each series, its rows and exponents.
    """
    for name in names:
        series = SERIES[name]
        table = Table(title=f"{series.title}, fp16; CPU seconds", title_justify="left")
        for column in (name, "nodes", "candidates", *STAGES):
            table.add_column(column, justify="right")
        rows = []
        for size in series.sizes:
            row = measure(series, size)
            rows.append(row)
            counts = [str(row[key]) for key in ("size", "nodes", "candidates")]
            table.add_row(*counts, *[f"{row['seconds'][stage]:.2f}" for stage in STAGES])
        slopes = exponents(rows)
        table.add_row("exponent", "", "", *[f"{slopes[stage]:.2f}" for stage in STAGES])
        console.print(table)
        yield {"series": name, "rows": rows, "exponents": slopes}
