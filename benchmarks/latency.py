"""How long the first call of a pipeline takes, planning included: with an empty cache, and in the next process.

    python -m benchmarks.latency
    python -m benchmarks.latency LTXPipeline WanPipeline

The pipelines are the tiny ones of the tests, in float64, within a roomy budget, so nearly all of a first call is
capture and planning. Each is made in a process of its own, twice, with one cache. Calls after the first are made in
turns with those of an untouched twin; medians. Seconds are of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import sicompiler
from sicompiler.cache.store import VARIABLE
from tests.pipelines import PIPELINES, run

ROUNDS = 7
DEFAULT = ("LTXPipeline", "AnimateDiffPipeline", "WanPipeline")


def calls(name: str) -> dict[str, float]:
    """Seconds of the first compiled call, of a later one and of an untouched one, and what the last two are apart."""
    make, inputs = PIPELINES[name]
    plain, pipe, call = make(torch.float64), make(torch.float64), inputs(torch.float64)
    _seconds(plain, call)
    sicompiler.compile_for_budget(pipe, 1)
    first = _seconds(pipe, call)
    pairs = [(_seconds(plain, call), _seconds(pipe, call)) for _ in range(ROUNDS)]
    untouched, later = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratio = statistics.median(own / other for other, own in pairs)
    return {"untouched": untouched, "first": first, "later": later, "ratio": ratio}


def _seconds(pipe: Any, call: dict[str, Any]) -> float:
    began = time.perf_counter()
    run(pipe, call)
    return time.perf_counter() - began


def in_a_process(name: str, cache: str) -> dict[str, float]:
    """What `calls` measures, in a new process.

    Raises:
        SystemExit: it failed; with what it says.
    """
    command = [sys.executable, "-m", "benchmarks.latency", "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, VARIABLE: cache})
    if done.returncode:
        sys.exit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure all pipelines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(DEFAULT), help="pipelines of the tests")
    parser.add_argument("--one", help="measure this one here, with the cache of the environment, and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(calls(options.one)))
        return
    columns = ("pipeline", "untouched", "first call", "first call, next process", "later calls", "over untouched")
    table = Table(*columns, title="seconds", title_justify="left")
    for name in options.names:
        with tempfile.TemporaryDirectory() as cache:
            empty, known = in_a_process(name, cache), in_a_process(name, cache)
        cells = (known["untouched"], empty["first"], known["first"], known["later"], known["ratio"])
        table.add_row(name, *(f"{seconds:.2f}" for seconds in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
