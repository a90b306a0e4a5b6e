"""`sicompiler demo PROMPT`: a clip untouched, compiled for a budget, and with Step Rehash."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sicompiler.adapters.pipeline import pipeline_state
from sicompiler.api import compile_for_budget, rehash_report, release, verify
from sicompiler.cli.files import check_folder
from sicompiler.cli.output import Progress, quiet, show, show_json
from sicompiler.demo.pipeline import demo_pipeline
from sicompiler.demo.quality import call_of
from sicompiler.demo.shapes import COLOURS, DIRECTIONS, SHAPES, all_scenes
from sicompiler.errors import BadInput
from sicompiler.rehash.request import Rehash
from sicompiler.reports.clips import save_clips
from sicompiler.reports.rehash import summary
from sicompiler.reports.summary import table
from sicompiler.units import format_bytes, format_seconds

STEPS = 25
SHARE = 0.75  # of what the untouched pipeline needs: the budget
SPEEDUPS = (1.4, 1.1)  # the first that is measured to be met: a machine may be busy, or small
ROUNDS = 3  # timed runs of each, in turns
LEARNED = ("a green ring moving up", "a blue triangle moving right", "a yellow cross moving down")


@dataclass(frozen=True)
class Row:
    """One way to make the clip.

    Attributes:
        label: untouched, exact or with Step Rehash.
        budget_bytes: None for the untouched pipeline.
        peak_bytes: measured, of the whole call, weights included.
        seconds: median of a few runs in turns.
        full: denoiser evaluations in full.
        max_abs_error: of the frames, which go from 0 to 1, against the untouched pipeline.
        bitwise: whether they are equal bit for bit.
    """

    label: str
    budget_bytes: int | None
    peak_bytes: int
    seconds: float
    full: int
    max_abs_error: float
    bitwise: bool


def run(prompt: str, model: Path | None, output: Path, *, seed: int, as_json: bool) -> int:
    """Run the demo.

    Args:
        prompt: what to show.
        model: folder of a trained demo pipeline; None for the one that comes along.
        output: folder of the clips.
        seed: of the starting noise.
        as_json: print for machines.

    Returns:
        0; 1 if a measured peak is above the budget.

    Raises:
        BadInput: diffusers or transformers is not installed; there is no pipeline in the folder; the prompt has words
            that the model was never shown.
    """
    if prompt not in {scene.caption for scene in all_scenes()}:
        raise BadInput(
            f"the demo pipeline can't show {prompt!r}; it knows 'a COLOUR SHAPE moving DIRECTION' of "
            f"{', '.join(COLOURS)}; {', '.join(SHAPES)}; {', '.join(DIRECTIONS)}"
        )
    output = check_folder(output, "the pictures and reports")
    with Progress() as progress, quiet():
        progress("loading the pipeline", 0, 1)
        pipe = demo_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        rows, clips, plan = _rows(pipe, lambda: call_of(prompt, seed, STEPS), progress)
        progress("writing clips", 0, 1)
        difference = (clips["with Step Rehash"] - clips["untouched"]).abs().mul(5).clamp(0, 1)
        files = save_clips(output, {**clips, "difference x 5": difference})
    if as_json:
        show_json({"prompt": prompt, "rows": [asdict(row) for row in rows], "files": [str(f) for f in files]})
    else:
        _print(prompt, rows, plan, files)
    return int(any(row.budget_bytes is not None and row.peak_bytes > row.budget_bytes for row in rows))


def _rows(
    pipe: Any, call: Callable[[], dict[str, Any]], progress: Progress
) -> tuple[list[Row], dict[str, torch.Tensor], str]:
    """Each way measured once, then timed in turns by one compiled pipeline."""
    progress("running the untouched pipeline", 0, 1)
    compile_for_budget(pipe, 1)
    untouched = verify(pipe, ((), call())).untouched_peak_bytes
    release(pipe)
    budget = int(SHARE * untouched)
    progress("compiling for the budget", 0, 1)
    exact = verify(compile_for_budget(pipe, f"{budget}B", progress=progress), ((), call()))
    learned = [call_of(prompt, 1000 + number, STEPS) for number, prompt in enumerate(LEARNED)]
    _calibrate(pipe, f"{budget}B", learned, progress)
    rehashed = verify(pipe, ((), call()))
    report = rehash_report(pipe)
    state = pipeline_state(pipe, "demo")
    assert state.rehash is not None
    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "untouched": state.untouched,
        "exact": partial(state.rehash.switched, "exact"),
        "with Step Rehash": nullcontext,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    clips: dict[str, torch.Tensor] = {}
    for number in range(ROUNDS):
        progress("timing, in turns", number, ROUNDS)
        for name, way in ways.items():
            with way():
                began = time.perf_counter()
                clips[name] = pipe(**call()).frames[0]
                seconds[name].append(time.perf_counter() - began)
    release(pipe)
    times = {name: statistics.median(found) for name, found in seconds.items()}
    return (
        [
            Row("untouched", None, untouched, times["untouched"], STEPS, 0.0, True),
            Row("exact", budget, exact.measured_peak_bytes, times["exact"], STEPS, exact.max_abs_error, exact.bitwise),
            Row(
                "with Step Rehash",
                budget,
                rehashed.measured_peak_bytes,
                times["with Step Rehash"],
                report.full,
                rehashed.max_abs_error,
                rehashed.bitwise,
            ),
        ],
        clips,
        f"nothing is skipped: {report.why}" if report.plan is None else summary(report.plan),
    )


def _calibrate(pipe: Any, budget: str, learned: list[dict[str, Any]], progress: Progress) -> None:
    """Compile with the largest speed-up that is reached here by a plan that ends nearer than fewer steps.

    Raises:
        BadInput: none is.
    """
    for speedup in SPEEDUPS:
        wanted = Rehash(speedup=speedup, calls=learned, held_out=1)
        try:
            compile_for_budget(pipe, budget, rehash=wanted, progress=progress)
            if rehash_report(pipe).plan is not None:
                return
        except BadInput:
            if speedup == SPEEDUPS[-1]:
                raise


def _print(prompt: str, rows: Sequence[Row], plan: str, files: Sequence[Path]) -> None:
    cells = [
        (
            row.label,
            "" if row.budget_bytes is None else format_bytes(row.budget_bytes),
            format_bytes(row.peak_bytes),
            format_seconds(row.seconds),
            f"{row.full} of {STEPS}",
            "0, bit for bit" if row.bitwise else f"{row.max_abs_error:.1e}",
        )
        for row in rows
    ]
    columns = ("", "budget>", "measured peak>", "time>", "evaluations in full>", "largest difference>")
    show(table(f'"{prompt}", {STEPS} steps, {torch.get_num_threads()} threads', columns, cells), plan)
    show(*(f"clip: {file}" for file in files))
