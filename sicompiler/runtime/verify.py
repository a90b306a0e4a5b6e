"""Verification: a compiled model against the untouched one, outputs and peaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sicompiler.capture import flatten_inputs
from sicompiler.capture.quantised import storage_bytes
from sicompiler.capture.results import leaves_of
from sicompiler.device import device_kind
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.measure import observe_peak
from sicompiler.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Verification:
    """One call of a compiled model beside the untouched model. Peaks include weights and inputs.

    Attributes:
        max_abs_error: biggest absolute difference of any output element.
        max_rel_error: the same, over the biggest absolute value of that output.
        bitwise: whether all outputs are equal bit for bit.
        budget_bytes, predicted_peak_bytes, measured_peak_bytes: of the compiled run.
        untouched_peak_bytes: measured peak of the untouched model.
        seconds, untouched_seconds: one run each, while measured.
        not_measured: why the peaks were not measured, and are 0; empty where they were.
    """

    max_abs_error: float
    max_rel_error: float
    bitwise: bool
    budget_bytes: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    untouched_peak_bytes: int
    seconds: float
    untouched_seconds: float
    not_measured: str = ""

    @property
    def fits(self) -> bool:
        """Whether measured <= predicted <= budget; not where nothing was measured."""
        return not self.not_measured and self.measured_peak_bytes <= self.predicted_peak_bytes <= self.budget_bytes

    def __str__(self) -> str:
        equal = "bit for bit" if self.bitwise else f"max abs {self.max_abs_error:.2g}, max rel {self.max_rel_error:.2g}"
        measured, predicted = format_bytes(self.measured_peak_bytes), format_bytes(self.predicted_peak_bytes)
        peak = (
            f"{measured} measured <= {predicted} predicted <= {format_bytes(self.budget_bytes)} budget: "
            f"{'yes' if self.fits else 'NO'} (untouched {format_bytes(self.untouched_peak_bytes)})"
        )
        return (
            f"output: {equal}\n"
            f"peak:   {f'not measured: {self.not_measured}' if self.not_measured else peak}\n"
            f"time:   {format_seconds(self.seconds)} (untouched {format_seconds(self.untouched_seconds)})"
        )


def errors(ours: Any, theirs: Any) -> tuple[float, float, bool]:
    """Biggest absolute and relative error between two outputs, and whether they are equal bit for bit.

    The relative error of an output tensor is its biggest absolute error over its biggest absolute value.
    """
    biggest_abs = biggest_rel = 0.0
    bitwise = True
    for a, b in zip(leaves_of(ours), leaves_of(theirs), strict=True):
        if not isinstance(a, torch.Tensor):
            bitwise = bitwise and a == b
            continue
        bitwise = bitwise and torch.equal(a, b)
        if a.numel():
            wide = torch.float64 if a.dtype != torch.complex64 else torch.complex128
            difference = float((a.to(wide) - b.to(wide)).abs().max())
            scale = float(b.to(wide).abs().max())
            biggest_abs = max(biggest_abs, difference)
            biggest_rel = max(biggest_rel, difference / scale if scale else difference)
    return biggest_abs, biggest_rel, bitwise


def compare(
    model: torch.nn.Module,
    compiled: Executable,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    call: Callable[..., Any] | None = None,
    before: Callable[[], None] | None = None,
) -> Verification:
    """Run both models on the same inputs.

    Args:
        model: running its own forward.
        compiled: its rewritten form for these inputs.
        args: positional inputs.
        kwargs: keyword inputs.
        call: the method that was compiled; the model itself if not given.
        before: called between the two runs: brings the weights to where the plan wants them.
    """
    plan = compiled.plan
    flat, _ = flatten_inputs(args, kwargs)
    inputs = storage_bytes(t for t in flat if isinstance(t, torch.Tensor))
    resident = plan.weights_bytes + sum(inputs.values())
    device = device_kind(plan.device).torch_type
    began = time.perf_counter()
    with observe_peak(device, exact=True) as untouched, torch.no_grad():
        theirs = (call or model)(*args, **kwargs)
    untouched_seconds = time.perf_counter() - began
    if before is not None:
        before()
    between = time.perf_counter()
    with observe_peak(device, exact=True) as measured:
        ours = compiled.run(model, flat)
    ended = time.perf_counter()
    absolute, relative, bitwise = errors(ours, theirs)
    return Verification(
        absolute,
        relative,
        bitwise,
        plan.budget_bytes,
        plan.counted_peak_bytes,
        0 if measured.not_measured else resident + measured.bytes,
        0 if untouched.not_measured else resident + plan.streamed_bytes + untouched.bytes,
        ended - between,
        untouched_seconds,
        measured.not_measured or untouched.not_measured,
    )
