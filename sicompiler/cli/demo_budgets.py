"""`sicompiler demo --budgets`: a small video model under shrinking budgets, run and compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sicompiler.api import prepare
from sicompiler.capture import flatten_inputs
from sicompiler.cli.files import check_folder
from sicompiler.cli.output import Progress, quiet, show, show_json
from sicompiler.compiler.planner import Planner
from sicompiler.plan import Plan
from sicompiler.reports.picture import Trace, timeline_picture
from sicompiler.reports.report import Report
from sicompiler.reports.summary import table
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from sicompiler.units import format_bytes, format_seconds
from sicompiler.zoo.build import ModelCall, build_model
from sicompiler.zoo.geometry import GivenSizes

CLASS = "UNetSpatioTemporalConditionModel"
CONFIG = {  # Stable Video Diffusion's UNet with every kind of block, but narrow and one layer deep
    "block_out_channels": (64, 64, 128, 128),
    "layers_per_block": 1,
    "num_attention_heads": (2, 2, 4, 4),
    "cross_attention_dim": 64,
    "in_channels": 8,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
}
SIZES: GivenSizes = {"batch": 2, "frames": 8, "height": 448, "width": 448}
SHARES = (("100 %", 1.0), ("50 %", 0.5), ("25 %", 0.25), ("floor", 0.0))  # of the unsliced peak


@dataclass(frozen=True)
class BudgetRow:
    """One run of the demo.

    Attributes:
        label: share of the unsliced peak that was allowed; "untouched" for the model itself.
        budget_bytes: None for the untouched model.
        predicted_peak_bytes: None for the untouched model.
        measured_peak_bytes: weights and inputs included.
        seconds: one run.
        max_abs_error: against the untouched model.
        bitwise: whether the outputs are equal bit for bit.
        regions: how many sliced loops there are.
    """

    label: str
    budget_bytes: int | None
    predicted_peak_bytes: int | None
    measured_peak_bytes: int
    seconds: float
    max_abs_error: float
    bitwise: bool
    regions: int


@dataclass(frozen=True)
class _Run:
    output: Any
    trace: Trace


def run(output: Path, *, as_json: bool) -> int:
    """Run the demo.

    Returns:
        0; 1 if a measured peak is above its prediction.
    """
    output = check_folder(output, "the pictures and reports")
    with Progress() as progress, quiet():
        progress("building the model", 0, 1)
        call = build_model("demo", CLASS, CONFIG, SIZES, dtype="float32", fake=False)
        _, planner = prepare(call.module, call.args, call.kwargs, name="demo", device_type="cpu", progress=progress)
        rows, before, after, last = _runs(call, planner, progress)
        progress("drawing", 0, 1)
        title = "One denoising step of a small SVD UNet: the same output in less memory"
        picture = timeline_picture(output / "memory_timeline.png", title, before, after)
        report = Report("demo", last.plan.budget_bytes, (last.plan,), (last.program,)).to_html(output / "report.html")
    if as_json:
        show_json({"rows": [asdict(row) for row in rows], "picture": str(picture), "report": str(report)})
    else:
        _print(call, rows, picture, report)
    return int(
        any(row.predicted_peak_bytes is not None and row.measured_peak_bytes > row.predicted_peak_bytes for row in rows)
    )


def _runs(
    call: ModelCall, planner: Planner, progress: Progress
) -> tuple[list[BudgetRow], Trace, list[tuple[Trace, int]], Executable]:
    """The untouched model, then one compiled run a budget."""
    flat, _ = flatten_inputs(call.args, call.kwargs)
    inputs = sum(t.untyped_storage().nbytes() for t in flat if isinstance(t, torch.Tensor))
    resident = planner.weights_bytes + inputs

    def untouched() -> Any:
        with torch.no_grad():
            return call.module(*call.args, **call.kwargs)

    progress("running the untouched model", 0, 1)
    untouched()  # the first run of a process is slower
    first = _measured("untouched", untouched, resident)
    rows = [BudgetRow("untouched", None, None, first.trace.peak_bytes, first.trace.seconds, 0.0, True, 0)]
    traces: list[tuple[Trace, int]] = []
    compiled: Executable | None = None
    floor_bytes = planner.floor()[0]
    for number, (label, share) in enumerate(SHARES):
        progress("running compiled models", number, len(SHARES))
        plan = planner.plan(max(floor_bytes, int(share * planner.unsliced_bytes)))
        compiled = _compiled(planner, plan, compiled)
        found = _measured(f"compiled for {format_bytes(plan.budget_bytes)}", _runner(compiled, call, flat), resident)
        absolute, _, bitwise = errors(found.output, first.output)
        rows.append(
            BudgetRow(
                label,
                plan.budget_bytes,
                plan.predicted_peak_bytes,
                found.trace.peak_bytes,
                found.trace.seconds,
                absolute,
                bitwise,
                len(plan.regions),
            )
        )
        traces.append((found.trace, plan.budget_bytes))
    assert compiled is not None
    return rows, first.trace, [traces[1], traces[-1]], compiled


def _compiled(planner: Planner, plan: Plan, previous: Executable | None) -> Executable:
    """The rewritten model; the previous one where the plans differ in nothing but the budget."""
    if previous is not None and replace(previous.plan, budget_bytes=plan.budget_bytes) == plan:
        return Executable(previous.program, plan)
    return Executable(planner.rewrite(plan), plan)


def _runner(compiled: Executable, call: ModelCall, flat: Sequence[Any]) -> Callable[[], Any]:
    return lambda: compiled.run(call.module, flat)


def _measured(label: str, function: Callable[[], Any], resident_bytes: int) -> _Run:
    with measure_peak("cpu") as peak:
        began = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - began
    return _Run(result, Trace(label, peak.timeline(), resident_bytes, seconds))


def _print(call: ModelCall, rows: Sequence[BudgetRow], picture: Path, report: Path) -> None:
    parameters = sum(p.numel() for p in call.module.parameters())
    assert call.sizes is not None
    size = f"{call.sizes.frames} frames of {call.sizes.width}x{call.sizes.height}, batch {call.sizes.batch}"
    head = f"{CLASS}, {parameters / 1e6:.1f} M parameters, {size}, float32, {torch.get_num_threads()} threads"
    cells = [
        (
            row.label,
            "" if row.budget_bytes is None else format_bytes(row.budget_bytes),
            format_bytes(row.measured_peak_bytes),
            "" if row.predicted_peak_bytes is None else format_bytes(row.predicted_peak_bytes),
            format_seconds(row.seconds),
            "0, bit for bit" if row.bitwise else f"{row.max_abs_error:.1e}",
            str(row.regions) if row.budget_bytes else "",
        )
        for row in rows
    ]
    columns = (
        "budget, of the unsliced peak",
        "bytes>",
        "measured peak>",
        "predicted peak>",
        "time>",
        "largest difference>",
        "loops>",
    )
    show(table(head, columns, cells), f"memory over time: {picture}", f"report of the last plan: {report}")
