"""How long the first call of a pipeline takes, planning included: with an empty cache, and in the next process.

    python -m benchmarks.latency
    python -m benchmarks.latency LTXPipeline WanPipeline
    python -m benchmarks.latency --calibration

The pipelines are the tiny ones of the tests, in float64, within a roomy budget, so nearly all of a first call is
capture and planning. Each is made in a process of its own, twice, with one cache. Calls after the first are made in
turns with those of an untouched twin; medians. Seconds are of the clock.

`--calibration` calibrates Step Rehash on six calls of the demo pipeline instead, with an empty cache and with what that
left there, and counts the clips it makes by what they are for. Those that end early count as clips, and as such.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import sicompiler
from benchmarks.rehash import SCHEDULERS, budget_of, clip_call, learned_cases
from benchmarks.rehash_product import HELD_OUT, LEARN, pipeline
from sicompiler.cache.store import VARIABLE
from sicompiler.pipelines.pipeline import pipeline_state
from tests.pipelines import PIPELINES, run

ROUNDS = 7
STEPS, GUIDANCE, SPEEDUP = 25, 2.0, 1.5  # of a calibration
REHASH = "Step Rehash: "  # begins what a calibration says it is doing
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


@dataclass
class Made:
    """Calls of a pipeline that were made for one purpose.

    Attributes:
        clips: how many.
        ended: of these, those that were ended before their frames.
        seconds: they took, what is planned meanwhile included.
    """

    clips: int = 0
    ended: int = 0
    seconds: float = 0.0


def calibration(given: Sequence[Mapping[str, Any]], budget: str) -> tuple[dict[str, Made], float, float]:
    """Calibrate Step Rehash on six calls of the demo pipeline, as `benchmarks.rehash_product` does at guidance 2.

    Args:
        given: keyword arguments of the calls.
        budget: of the pipeline.

    Returns:
        By purpose, the clips; seconds of all, and of planning components in them.
    """
    own = pipeline(SCHEDULERS[0])
    made, doing, call = dict[str, Made](), [""], type(own).__call__

    def progress(what: str, *_: int) -> None:
        if what.startswith(REHASH):
            doing[0] = what.removeprefix(REHASH)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        row, began, whole = made.setdefault(doing[0], Made()), time.perf_counter(), False
        try:
            result = call(self, *args, **kwargs)
            whole = True
            return result
        finally:
            row.clips, row.ended = row.clips + 1, row.ended + (not whole)
            row.seconds += time.perf_counter() - began

    type(own).__call__ = counted
    request = sicompiler.Rehash(speedup=SPEEDUP, calls=given, held_out=HELD_OUT)
    try:
        seconds = _seconds_of(lambda: sicompiler.compile_for_budget(own, budget, rehash=request, progress=progress))
    finally:
        type(own).__call__ = call
    components = pipeline_state(own, "measure").components.values()
    return made, seconds, sum(component.planning_seconds for component in components)


def _seconds_of(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def show_calibration(console: Console) -> None:
    """Calibrate with an empty cache, then with what that has left there, and print what it takes."""
    given = [{**clip_call(case, STEPS), "guidance_scale": GUIDANCE} for case in learned_cases(LEARN + HELD_OUT)]
    plain = pipeline(SCHEDULERS[0])
    budget = budget_of(plain, STEPS)
    clip = min(_seconds_of(lambda: plain(**given[0])) for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        os.environ[VARIABLE] = cache
        for title in ("empty cache", "known graphs"):
            made, seconds, planning = calibration(given, budget)
            table = Table("made for", "clips", "ended early", "seconds", title=title, title_justify="left")
            for purpose, row in made.items():
                table.add_row(purpose, str(row.clips), str(row.ended), f"{row.seconds:.1f}")
            clips = sum(row.clips for row in made.values())
            table.add_row("all", str(clips), str(sum(row.ended for row in made.values())), f"{seconds:.1f}")
            console.print(table)
            console.print(f"{planning:.1f} of them for planning")
    console.print(f"a clip by the untouched pipeline takes {clip:.1f}")


def main() -> None:
    """Measure all pipelines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(DEFAULT), help="pipelines of the tests")
    parser.add_argument("--one", help="measure this one here, with the cache of the environment, and print JSON")
    parser.add_argument("--calibration", action="store_true", help="calibrate Step Rehash on six calls of the demo")
    parser.add_argument("--threads", type=int, help="of torch, for --calibration; all cores by default")
    options = parser.parse_args()
    if options.calibration:
        if options.threads:
            torch.set_num_threads(options.threads)
        show_calibration(Console(width=120))
        return
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
