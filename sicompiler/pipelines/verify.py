"""Verification of a pipeline: frames and peaks of a whole call, or every component on its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture.quantised import stored
from sicompiler.device import random_rewinder
from sicompiler.pipelines.components import modules_of
from sicompiler.pipelines.weights import storages, weights_of
from sicompiler.reports.phases import PhaseRow
from sicompiler.runtime.examples import Inputs, checked_inputs
from sicompiler.runtime.measure import Peak, observe_peak
from sicompiler.runtime.verify import errors
from sicompiler.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from sicompiler.pipelines.pipeline import CompiledPipeline


@dataclass(frozen=True)
class PipelineVerification:
    """A compiled pipeline beside the untouched one. Peaks include all that is resident.

    Attributes:
        max_abs_error: biggest absolute difference of any element of the frames.
        max_rel_error: the same, over the biggest absolute value.
        bitwise: whether they are equal bit for bit.
        budget_bytes: of the pipeline.
        measured_peak_bytes: of a whole call, what the pipeline does between its components included.
        untouched_peak_bytes: of the untouched pipeline.
        seconds, untouched_seconds: one run each, while measured.
        phases: one row a component, with its measured peak.
        not_measured: why the peaks were not measured, and are 0; empty where they were.
    """

    max_abs_error: float
    max_rel_error: float
    bitwise: bool
    budget_bytes: int
    measured_peak_bytes: int
    untouched_peak_bytes: int
    seconds: float
    untouched_seconds: float
    phases: tuple[PhaseRow, ...]
    not_measured: str = ""

    @property
    def fits(self) -> bool:
        """Whether the run stayed within the budget, and every component within what was predicted for it.

        Not where nothing was measured.
        """
        within = self.measured_peak_bytes <= self.budget_bytes and all(row.fits for row in self.phases)
        return within and not self.not_measured

    def __str__(self) -> str:
        equal = "bit for bit" if self.bitwise else f"max abs {self.max_abs_error:.2g}, max rel {self.max_rel_error:.2g}"
        measured, budget = format_bytes(self.measured_peak_bytes), format_bytes(self.budget_bytes)
        peak = (
            f"{measured} measured <= {budget} budget: {'yes' if self.fits else 'NO'} "
            f"(untouched {format_bytes(self.untouched_peak_bytes)})"
        )
        peak = f"not measured: {self.not_measured}" if self.not_measured else peak
        lines = [f"output: {equal}", f"peak:   {peak}"]
        for row in self.phases:
            if row.measured_peak_bytes is not None:
                predicted = "-" if row.predicted_peak_bytes is None else format_bytes(row.predicted_peak_bytes)
                lines.append(
                    f"        {row.phase}, {row.component}: {format_bytes(row.measured_peak_bytes)} measured <= "
                    f"{predicted} predicted: {'yes' if row.fits else 'NO'}"
                )
        lines.append(f"time:   {format_seconds(self.seconds)} (untouched {format_seconds(self.untouched_seconds)})")
        return "\n".join(lines)


def compare_runs(state: CompiledPipeline, example_inputs: Inputs) -> PipelineVerification:
    """Run a whole call untouched, compiled with every component measured, and compiled as a whole.

    Random generators among the inputs, and torch's own, start each run in the state they are in now.
    """
    args, kwargs = checked_inputs(example_inputs)
    device = _device(state)
    rewind = rewinder(args, kwargs)
    rewind()
    with state.untouched():
        resident = _resident(state, device, example_inputs)  # with all that was moved away back again
        began = time.perf_counter()
        with observe_peak(device, older=_weights(state), exact=True) as untouched:
            theirs = state.pipe(*args, **kwargs)
        untouched_seconds = time.perf_counter() - began
    rewind()
    with _measured_calls(state):
        state.pipe(*args, **kwargs)
    rewind()
    state.clear(device)
    entered = _resident(state, device, example_inputs)
    began = time.perf_counter()
    with observe_peak(device, older=_weights(state), exact=True) as measured:
        ours = state.pipe(*args, **kwargs)
    seconds = time.perf_counter() - began
    absolute, relative, bitwise = errors(frames_of(ours), frames_of(theirs))
    return PipelineVerification(
        absolute,
        relative,
        bitwise,
        state.budget_bytes,
        _total(measured, entered),
        _total(untouched, resident),
        seconds,
        untouched_seconds,
        state.report().phases,
        measured.not_measured or untouched.not_measured,
    )


@dataclass(frozen=True)
class Measured:
    """A call of a pipeline, compiled or not.

    Attributes:
        output: that it gave.
        peak_bytes: with all that was resident.
    """

    output: Any
    peak_bytes: int


def measured_call(pipe: Any, kwargs: dict[str, Any]) -> Measured:
    """Make a call and measure it.

    Args:
        pipe: the pipeline.
        kwargs: of the call.
    """
    device = torch.device(pipe._execution_device)
    resident = storages((x for x in pytree.tree_leaves(kwargs) if isinstance(x, torch.Tensor)), device)
    parts = modules_of(pipe).values()
    for part in parts:
        resident |= weights_of(part, device)
    older = (piece for part in parts for x in (*part.parameters(), *part.buffers()) for piece in stored(x))
    with observe_peak(device, older=older, exact=True) as peak:
        output = pipe(**kwargs)
    return Measured(output, _total(peak, sum(resident.values())))


def compare_components(state: CompiledPipeline) -> PipelineVerification:
    """Run every component that has a plan on random tensors of its last shapes, untouched and compiled."""
    found, weights = [], _resident(state, _device(state), ((), {}))
    for role, component in state.components.items():
        if component.last is None:
            continue
        with component.tenants.serving(component.tenants.of(state, role)), component.turn.taken():
            result = component.verify()
            beside = component.reserved.total_bytes - component.reserved.margin_bytes
            for record in component.records:
                if record.compiled is component.last[0] and not result.not_measured:
                    record.measured_bytes = max(record.measured_bytes or 0, result.measured_peak_bytes + beside)
        found.append((result, beside))
    not_measured = next((r.not_measured for r, _ in found if r.not_measured), "")
    return PipelineVerification(
        max(r.max_abs_error for r, _ in found),
        max(r.max_rel_error for r, _ in found),
        all(r.bitwise for r, _ in found),
        state.budget_bytes,
        0 if not_measured else max((r.measured_peak_bytes + beside for r, beside in found), default=weights),
        0 if not_measured else max((r.untouched_peak_bytes + beside for r, beside in found), default=weights),
        sum(r.seconds for r, _ in found),
        sum(r.untouched_seconds for r, _ in found),
        state.report().phases,
        not_measured,
    )


def _total(peak: Peak, before: int) -> int:
    """Bytes of a measured call; 0 where nothing was measured.

    Args:
        peak: of the call.
        before: what was on the device when it began, for devices that do not count.
    """
    return 0 if peak.not_measured else (peak.allocated_at_entry or before) + peak.bytes


def _device(state: CompiledPipeline) -> torch.device:
    return torch.device(state.pipe._execution_device)


def _resident(state: CompiledPipeline, device: torch.device, inputs: Any) -> int:
    """What is on the device before a call: all weights, and the tensors the caller passes."""
    found = storages((x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)), device)
    for part in modules_of(state.pipe).values():
        found |= weights_of(part, device)
    return sum(found.values())


def _weights(state: CompiledPipeline) -> Iterator[torch.Tensor]:
    """What a pipeline may replace while it runs, by casting a component."""
    for part in modules_of(state.pipe).values():
        for tensor in (*part.parameters(), *part.buffers()):
            yield from stored(tensor)


@contextlib.contextmanager
def _measured_calls(state: CompiledPipeline) -> Iterator[None]:
    state.measure_calls = True
    try:
        yield
    finally:
        state.measure_calls = False


def rewinder(args: Any, kwargs: Any) -> Any:
    """A function that puts random generators among the inputs, and torch's own, back into the state they are in now."""
    generators = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Generator)]
    states, own = [g.get_state() for g in generators], torch.get_rng_state()
    rewind_devices = random_rewinder()

    def rewind() -> None:
        for generator, before in zip(generators, states, strict=True):
            generator.set_state(before)
        torch.set_rng_state(own)
        rewind_devices()

    return rewind


def frames_of(output: Any) -> list[torch.Tensor]:
    """The frames of an output as tensors, whatever the pipeline returns: tensors, arrays or images."""
    import numpy

    leaves = pytree.tree_leaves(dict(output) if isinstance(output, dict) else output)
    return [x if isinstance(x, torch.Tensor) else torch.from_numpy(numpy.array(x)) for x in leaves if x is not None]
