"""Runs that fail: what they had taken is given back at once, the error names the plan, and the next call is right."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import sicompiler
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.runtime.compiled import Executable
from sicompiler.units import MIB, format_bytes
from tests.mini_pipeline import close, mini, picture

COMPONENTS = ("text_encoder", "vae.encode", "unet", "vae.decode")


def tensors(found: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(found) if isinstance(x, torch.Tensor)]


class Fault(TorchDispatchMode):
    """Counts operators and remembers what they allocate; raises after one of them."""

    def __init__(self, at: int, raises: Callable[[Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at, self.raises, self.seen = at, raises, 0
        self.made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {x.untyped_storage()._cdata for x in tensors((args, kwargs))}
        self.made += [weakref.ref(x) for x in tensors(result) if x.untyped_storage()._cdata not in before]
        self.seen += 1
        if self.seen == self.at:
            self.raises(result)
        return result


@contextmanager
def faulty(pipe: Any, component: str, fault: Fault) -> Iterator[None]:
    """A pipeline whose compiled component meets a fault."""
    role = next(role for role in pipeline_state(pipe, "test").components if role.label == component)
    plans = {id(c) for c in pipeline_state(pipe, "test").components[role].compiled.values()}
    healthy = Executable.run

    def run(self: Executable, *args: Any) -> Any:
        if id(self) not in plans:
            return healthy(self, *args)
        fault.made.clear()  # what an earlier call gave is the pipeline's
        with fault:
            return healthy(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Executable, "run", run)
        yield


def fail(held: Any) -> None:
    raise ValueError("in the middle")


def run_out(held: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def run_out_on_the_cpu(held: Any) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def fail_while_handling(held: Any) -> None:
    """The frame of the first failure is in the traceback of the exception that this one came from, and nowhere else."""
    try:
        fail(held)
    except ValueError as error:
        raise KeyError("while handling") from error


@pytest.fixture(scope="module")
def tight() -> Any:
    """A pipeline at its floor, every phase planned, and what it gives."""
    pipe = mini()
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, 1)
    pipe(picture())
    sicompiler.compile_for_budget(pipe, f"{sicompiler.report(pipe).floor_bytes}B")
    pipe(picture())
    assert any(report.plan.regions for report in sicompiler.report(pipe).components.values())
    return pipe, reference


def operators(pipe: Any, component: str) -> int:
    """How many operators a component runs in one call of the pipeline."""
    count = Fault(-1, fail)
    with faulty(pipe, component, count):
        pipe(picture())
    return count.seen


@pytest.mark.parametrize("component", COMPONENTS)
def test_wherever_a_run_fails_its_buffers_go_and_the_next_call_is_right(tight: Any, component: str) -> None:
    pipe, reference = tight
    total = operators(pipe, component)
    for at in range(1, total + 1, max(total // 12, 1)):
        fault = Fault(at, fail_while_handling if at % 2 else fail)
        with faulty(pipe, component, fault), pytest.raises((ValueError, KeyError)) as caught:
            pipe(picture())
        alive = [made() for made in fault.made if made() is not None]
        assert not alive, f"after {at} of {total} operators, with {caught.value!r} still held"
        assert close(pipe(picture()), reference)
    found = sicompiler.verify(pipe, ((picture(),), {}))
    assert found.fits, str(found)


def test_what_the_caller_was_handling_keeps_its_frames(tight: Any) -> None:
    """Somebody may call again while an earlier error of theirs is still to be looked at."""

    def earlier() -> None:
        kept = "to be looked at"
        raise LookupError(kept)

    def again() -> None:
        try:
            earlier()
        except LookupError as error:
            before.append(error)
            tight[0](picture())

    before: list[LookupError] = []
    with faulty(tight[0], "unet", Fault(400, fail)), pytest.raises(ValueError, match="in the middle"):
        again()
    trace = before[0].__traceback__
    assert trace is not None
    assert trace.tb_next is not None
    assert trace.tb_next.tb_frame.f_locals == {"kept": "to be looked at"}


def test_running_out_of_memory_is_told_with_the_plan_and_what_was_held(tight: Any) -> None:
    pipe, reference = tight
    plan = sicompiler.report(pipe).components["unet"].plans[-1]
    fault = Fault(400, run_out)
    with faulty(pipe, "unet", fault), pytest.raises(sicompiler.OutOfMemory) as caught:
        pipe(picture())
    error = caught.value
    assert isinstance(error, torch.OutOfMemoryError)  # who catches torch's own catches this
    assert isinstance(error, sicompiler.SicompilerError)
    assert error.plan is plan
    assert plan.weights_bytes < error.held_bytes <= plan.predicted_peak_bytes
    assert error.measured_peak_bytes == error.held_bytes  # the CPU's allocator does not count
    for words in (
        "out of memory on cpu while MiniUNet ran by its plan",
        f"predicted a peak of {format_bytes(plan.predicted_peak_bytes)}",
        f"within a budget of {format_bytes(plan.budget_bytes)}",
        f"the run held {format_bytes(error.held_bytes)} when it failed",
        "Tried to allocate 20.00 MiB",
        "compile again with a smaller budget",
    ):
        assert words in str(error)
    assert [made() for made in fault.made if made() is not None] == []
    assert close(pipe(picture()), reference)


def test_on_an_accelerator_its_allocator_tells_the_peak(tight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(sicompiler.report(tight[0]).components["unet"].plans[-1], device="cuda")
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda: 5 * MIB)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda: 7 * MIB)
    error = sicompiler.OutOfMemory(plan, 3 * MIB, "CUDA out of memory.")
    assert error.measured_peak_bytes == 7 * MIB
    assert "the run held 3 MiB when it failed, all that torch has there 5 MiB (measured peak so far: 7 MiB)" in str(
        error
    )


def test_the_cpu_running_out_of_memory_is_told_alike(tight: Any) -> None:
    """torch has no exception of its own for this."""
    pipe, reference = tight
    words = r"MiniVae\.decode ran by its plan.*DefaultCPUAllocator"
    fault = Fault(8, run_out_on_the_cpu)
    with faulty(pipe, "vae.decode", fault), pytest.raises(sicompiler.OutOfMemory, match=words):
        pipe(picture())
    assert close(pipe(picture()), reference)


def test_other_shapes_before_and_after_a_fault() -> None:
    pipe = mini()
    wanted = {size: pipe(picture(size)) for size in (24, 36)}
    sicompiler.compile_for_budget(pipe, "4MiB")
    pipe(picture(24))
    with faulty(pipe, "unet", Fault(operators(pipe, "unet") // 2, run_out)), pytest.raises(sicompiler.OutOfMemory):
        pipe(picture(24))
    for size in (36, 24):
        assert close(pipe(picture(size)), wanted[size])
    assert len(sicompiler.report(pipe).components["unet"].plans) == 2


def test_planning_that_is_interrupted_leaves_the_pipeline_as_it_was() -> None:
    pipe = mini()
    reference = pipe(picture())
    interrupts = iter([True, False, True])

    def stop(what: str, done: int, total: int) -> None:
        if next(interrupts, False):
            raise KeyboardInterrupt

    sicompiler.compile_for_budget(pipe, "2MiB", progress=stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pipe(picture())
    assert close(pipe(picture()), reference)
    sicompiler.release(pipe)
    assert close(pipe(picture()), reference)


def test_a_fault_while_somebody_measures_ends_the_measurement(tight: Any) -> None:
    pipe, reference = tight
    with faulty(pipe, "unet", Fault(400, run_out)), pytest.raises(sicompiler.OutOfMemory):
        sicompiler.verify(pipe, ((picture(),), {}))
    found = sicompiler.verify(pipe, ((picture(),), {}))
    assert found.fits, str(found)
    assert close(pipe(picture()), reference)
