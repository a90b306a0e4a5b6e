"""Where the seconds of a capture go: part of `python -m benchmarks.planning --capture`.

A sample of the stack, every few milliseconds of processor time, belongs to the innermost frame that a row knows.
"""

from __future__ import annotations

import collections
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from sicompiler.capture import capture
from sicompiler.zoo.build import build_preset

INTERVAL_SECONDS = 0.004
OTHER = "torch: the rest"
ROWS = (
    ("torch: layouts of results (fake tensors)", re.compile(r"torch[/\\](_subclasses|_refs|_meta|_prims|_decomp)")),
    ("torch: functionalization", re.compile(r"torch[/\\]_functorch")),
    ("torch: dispatch of operators and functions", re.compile(r"torch[/\\](_ops|overrides|fx|_library|_export)")),
    ("ours: a second call", re.compile(r"sicompiler[/\\]capture[/\\](rehearsal|state)")),
    ("ours: what the model can reach", re.compile(r"sicompiler[/\\]guards")),
    ("ours: nodes", re.compile(r"sicompiler[/\\]capture")),
    ("torch: export around the trace", re.compile(r"torch[/\\]export")),
    ("the model's own code", re.compile(r"[/\\](diffusers|transformers)[/\\]|torch[/\\]nn")),
)


def row_of(filenames: Sequence[str]) -> str:
    """Which row a stack belongs to.

    Args:
        filenames: of its frames, the innermost first.
    """
    for filename in filenames:
        for name, pattern in ROWS:
            if pattern.search(filename):
                return name
    return OTHER


@contextmanager
def sampled(found: collections.Counter[str]) -> Iterator[None]:
    """Count samples by row, for a block."""

    def sample(_number: int, frame: FrameType | None) -> None:
        filenames = []
        while frame is not None:
            filenames.append(frame.f_code.co_filename)
            frame = frame.f_back
        found[row_of(filenames)] += 1

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measure(preset: str) -> dict[str, Any]:
    """Seconds of one capture, in all and by row.

    Args:
        preset: which model.
    """
    call = build_preset(preset)
    found: collections.Counter[str] = collections.Counter()
    began = time.process_time()
    with sampled(found):
        program = capture(call.module, call.args, call.kwargs, method=call.method)
    seconds, samples = time.process_time() - began, max(1, found.total())
    shares = {name: seconds * count / samples for name, count in found.most_common()}
    return {"preset": preset, "nodes": len(program.graph_module.graph.nodes), "seconds": seconds, "rows": shares}


def capture_shares(presets: Sequence[str], console: Console) -> Iterator[dict[str, Any]]:
    """Measure presets and print each as a table.

    Args:
        presets: names.
        console: where to print.

    Yields:
        What was measured, one preset after another.
    """
    for preset in presets:
        row = measure(preset)
        title = f"capture of {preset}, {row['nodes']:,} nodes: {row['seconds']:.1f} CPU seconds"
        table = Table(title=title, title_justify="left")
        table.add_column("where")
        table.add_column("seconds", justify="right")
        table.add_column("share", justify="right")
        for name, seconds in row["rows"].items():
            table.add_row(name, f"{seconds:.2f}", f"{seconds / row['seconds']:.0%}")
        console.print(table)
        yield row
