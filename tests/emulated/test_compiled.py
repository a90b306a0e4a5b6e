"""Compiled models on the emulated device: right in every order, within what was predicted, and no wait too few."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import pytest
import torch

import sicompiler
from sicompiler.errors import OffloadError, OverBudget
from sicompiler.ops import offloaded
from sicompiler.plan import Plan
from sicompiler.runtime.measure import measure_peak
from tests.emulated import accelerator
from tests.emulated.accelerator import ORDERS
from tests.emulated.product import EMU, Call, Residual, compiled, on_device, peaks, register

TOLERANCE = 1e-12  # in float64: sums of slices are rounded elsewhere
PARTS = (1.2, 0.9, 0.5)  # of the untouched peak: as it is, in slices, offloaded


@pytest.fixture(scope="module", autouse=True)
def row() -> None:
    """The compiler knows the device."""
    register()


@pytest.fixture(scope="module")
def residual() -> Call:
    torch.manual_seed(0)
    return on_device(Residual().double().eval(), (torch.randn(1, 4, 24, 24, dtype=torch.float64),), {})


@pytest.fixture(params=PARTS)
def planned(request: pytest.FixtureRequest, residual: Call) -> Iterator[Plan]:
    """The residual model within a part of its peak."""
    with compiled(residual, int(residual.peak_bytes * request.param)) as plan:
        yield plan


@pytest.fixture
def offloading(residual: Call) -> Iterator[Plan]:
    """A plan that spills values and streams weights."""
    with compiled(residual, residual.peak_bytes // 2) as plan:
        assert plan.spilled
        assert plan.streamed
        yield plan


def test_every_order_gives_the_same_bits_and_no_race(residual: Call, planned: Plan) -> None:
    accelerator.configure(races="raise")
    first = residual.run()
    assert max(float((a - b).abs().max()) for a, b in zip(first, residual.expected, strict=True)) <= TOLERANCE
    for order in ORDERS:
        for poison in (False, True):
            accelerator.configure(order=order, poison=poison, races="raise")
            for got, same in zip(residual.run(), first, strict=True):
                assert torch.equal(got, same), (order, poison)


def test_without_loops_results_are_those_of_the_cpu(residual: Call) -> None:
    with compiled(residual, 10 * residual.peak_bytes) as plan:
        assert not plan.regions
        assert all(torch.equal(got, same) for got, same in zip(residual.run(), residual.expected, strict=True))


def test_measured_is_within_predicted_within_the_budget(residual: Call, planned: Plan) -> None:
    with peaks() as measured:
        residual.run()
    assert measured.allocated <= planned.predicted_peak_bytes <= planned.budget_bytes


# --- waits that are missing ------------------------------------------------------------------------------------------

JOIN, CARRY = offloaded.CopyStream.join, offloaded.CopyStream.carry
LOADS, STORES = 0, 1  # of what `_copy_streams_of` gives


def _drop_join(patch: pytest.MonkeyPatch, direction: int) -> None:
    """What computes goes on without waiting for copies in one direction."""

    def join(self: offloaded.CopyStream) -> None:
        if self is not offloaded._copy_streams_of(EMU)[direction]:
            JOIN(self)

    patch.setattr(offloaded.CopyStream, "join", join)


def _drop_carry(patch: pytest.MonkeyPatch, direction: int) -> None:
    """Copies in one direction start without waiting for what computes."""

    @contextlib.contextmanager
    def carry(self: offloaded.CopyStream) -> Iterator[None]:
        unordered = self is offloaded._copy_streams_of(EMU)[direction]
        assert self.stream is not None
        with self.stream if unordered else CARRY(self):
            yield

    patch.setattr(offloaded.CopyStream, "carry", carry)


MUTANTS = {
    "no wait for loads": (_drop_join, LOADS),
    "no wait for stores": (_drop_join, STORES),
    "no wait before loads": (_drop_carry, LOADS),
    "no wait before stores": (_drop_carry, STORES),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_missing_wait_is_a_race(
    mutant: str, residual: Call, offloading: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, direction = MUTANTS[mutant]
    drop(monkeypatch, direction)
    for order in ORDERS:
        accelerator.configure(order=order, races="collect")
        residual.run()
        assert accelerator.races(), order
    monkeypatch.undo()
    accelerator.configure(races="collect")
    residual.run()
    assert accelerator.races() == []


# --- host memory ---------------------------------------------------------------------------------------------------


def test_streamed_weights_are_pinned_where_they_lie_and_let_go_of(residual: Call) -> None:
    before = accelerator.pinned_memory()
    with compiled(residual, residual.peak_bytes // 2) as plan:
        streamed = [residual.model.get_parameter(name) for name in plan.streamed]
        assert all(weight.is_pinned() for weight in streamed)
        pages = sum(-(-weight.nbytes // 4096) * 4096 for weight in streamed)
        pinned = accelerator.pinned_memory()
        assert pinned.reserved - before.reserved >= pages  # and blocks of spilled values
    gc.collect()
    accelerator.empty_host_cache()
    assert accelerator.pinned_memory().reserved <= before.reserved
    assert all(weight.device == EMU for weight in residual.model.parameters())


def test_a_model_whose_weights_are_streamed_takes_another_budget(residual: Call) -> None:
    with compiled(residual, residual.peak_bytes // 2) as plan:
        assert plan.streamed
        sicompiler.compile_for_budget(residual.model, f"{2 * residual.peak_bytes}B")
        assert residual.error() == 0
        assert not sicompiler.report(residual.model).plans[-1].streamed


def test_where_nothing_can_be_pinned_offloading_says_so(residual: Call) -> None:
    accelerator.configure(pin_limit=0)
    with pytest.raises(OffloadError, match="can't pin"), compiled(residual, residual.peak_bytes // 2):
        pass
    assert residual.error() == 0


# --- what only a device shows ----------------------------------------------------------------------------------------


@pytest.mark.skipif(
    torch.__version__ < "2.13",
    reason="this torch's profiler does not know the name that its spare device was given",
)
def test_the_timeline_of_a_device_is_measured(residual: Call) -> None:
    with torch.inference_mode(), measure_peak(EMU) as peak:
        residual.model(*residual.args)
    assert peak.bytes == residual.peak_bytes - (peak.allocated_at_entry or 0)
    assert max(live for _, live in peak.timeline()) == peak.bytes


def test_offloading_works_where_the_device_is_the_default(residual: Call) -> None:
    torch.set_default_device(EMU)
    try:
        with compiled(residual, residual.peak_bytes // 2) as plan:
            assert plan.spilled
            assert residual.error() <= TOLERANCE
    finally:
        torch.set_default_device(None)


def test_a_budget_below_the_floor_is_refused(residual: Call) -> None:
    with pytest.raises(OverBudget), compiled(residual, residual.peak_bytes // 20):
        pass
    assert residual.error() == 0
