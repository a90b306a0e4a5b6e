"""A run that failed: its buffers are given back, and running out of memory is told with the plan."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch

from sicompiler.device import device_kind
from sicompiler.errors import SicompilerError
from sicompiler.plan import Plan
from sicompiler.units import format_bytes

CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # the CPU's allocator raises a RuntimeError that begins by its name


class OutOfMemory(SicompilerError, torch.OutOfMemoryError):
    """The device ran out of memory in the middle of a run, though the plan fits its budget.

    Attributes:
        plan: what was being carried out.
        held_bytes: weights, inputs and buffers of the run when it failed.
        measured_peak_bytes: the most the allocator has held so far; where it does not count, as on the CPU,
            `held_bytes`.
    """

    def __init__(self, plan: Plan, held_bytes: int, reason: str) -> None:
        self.plan, self.held_bytes, self.measured_peak_bytes = plan, held_bytes, held_bytes
        counted = f"the run held {format_bytes(held_bytes)} when it failed"
        if device_kind(plan.device).has_counters:
            self.measured_peak_bytes = torch.accelerator.max_memory_allocated()
            counted += (
                f", all that torch has there {format_bytes(torch.accelerator.memory_allocated())} "
                f"(measured peak so far: {format_bytes(self.measured_peak_bytes)})"
            )
        floor = "" if plan.floor_bytes is None else f" (the floor is {format_bytes(plan.floor_bytes)})"
        super().__init__(
            f"out of memory on {plan.device} while {plan.model} ran by its plan. The plan predicted a peak of "
            f"{format_bytes(plan.predicted_peak_bytes)} within a budget of {format_bytes(plan.budget_bytes)}; "
            f"{counted}. "
            "Is the device shared, or the budget above what is free on it? Everything the run had taken is given back: "
            f"free memory or compile again with a smaller budget{floor}, and call again. torch says: {reason}"
        )


def settle(error: BaseException, handled: BaseException | None, values: list[Any], plan: Plan) -> BaseException:
    """Give back what a failed run holds, however long its exception is kept.

    Args:
        error: caught in the function that started the run.
        handled: what the caller was handling when it started the run: its frames are none of ours.
        values: what the run was given; emptied.
        plan: what was carried out.

    Returns:
        What to raise: the error itself, or `OutOfMemory` in its place.
    """
    chain = list(_chain(error, handled))
    ran_out = isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and CPU_OUT_OF_MEMORY in str(error)
    )
    held = (
        _held_bytes(chain, values, device_kind(plan.device).torch_type)
        if ran_out and not isinstance(error, OutOfMemory)
        else None
    )
    values.clear()
    for each in chain:
        traceback.clear_frames(each.__traceback__)
    return error if held is None else OutOfMemory(plan, held, str(error).splitlines()[0])


def locals_of(frame: FrameType) -> Mapping[str, Any]:
    """The local variables of a function that runs or has failed; nothing stays alive by being looked at."""
    names = dict(frame.f_locals)
    if sys.version_info < (3, 13):
        # f_locals is a snapshot that the frame keeps: left alone it would keep alive what the function lets go of.
        frame.f_locals.clear()
    return names


def _chain(error: BaseException | None, handled: BaseException | None) -> Iterator[BaseException]:
    """An exception and those it came from, whose frames hold buffers too, up to what was there before the run."""
    seen: set[int] = set()
    while error is not None and error is not handled and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _held_bytes(chain: Sequence[BaseException], values: list[Any], device: str) -> int:
    """Storages in the local variables of the functions that failed."""
    found = list(values)
    for each in chain:
        for frame, _ in traceback.walk_tb(each.__traceback__):
            for value in locals_of(frame).values():
                found += value if isinstance(value, (list, tuple)) else (value,)
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes()
        for t in found
        if isinstance(t, torch.Tensor) and t.device.type == device and t.layout is torch.strided
    }
    return sum(storages.values())
