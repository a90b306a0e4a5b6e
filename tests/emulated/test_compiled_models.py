"""Tiny models of the zoo on the emulated device, within a budget and on a card that is too small for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from sicompiler.errors import OverBudget
from sicompiler.plan import Plan
from tests import zoo
from tests.emulated import accelerator
from tests.emulated.product import Call, compiled, on_device, peaks, register

TOLERANCE = 1e-12  # in float64: sums of slices are rounded elsewhere
MIB = 1 << 20


@pytest.fixture(scope="module", params=["svd", "wan2.1-1.3b"])
def tiny(request: pytest.FixtureRequest) -> Iterator[tuple[Call, Plan]]:
    """A tiny model within seven tenths of its untouched peak."""
    register()
    accelerator.configure()
    call = on_device(*zoo.tiny(request.param))
    with compiled(call, int(call.peak_bytes * 0.7)) as plan:
        yield call, plan


def test_a_model_is_right_and_within_what_was_predicted(tiny: tuple[Call, Plan]) -> None:
    call, plan = tiny
    with peaks() as measured:
        assert call.error() <= TOLERANCE
    assert measured.allocated <= plan.predicted_peak_bytes <= plan.budget_bytes
    accelerator.configure(order="side-first", poison=True)
    assert call.error() <= TOLERANCE


def test_a_card_that_is_too_small_says_so_and_gives_everything_back(tiny: tuple[Call, Plan]) -> None:
    call, _ = tiny
    with peaks() as measured:
        call.run()
    if measured.allocated < 8 * MIB:
        pytest.skip("all of it lies in the segments of its weights")
    held = torch.accelerator.memory_allocated()
    accelerator.configure(capacity=measured.allocated - 2 * MIB)  # a segment too few, however well they are used
    torch.accelerator.empty_cache()
    with pytest.raises((OverBudget, torch.OutOfMemoryError)):
        call.run()
    gc.collect()
    assert torch.accelerator.memory_allocated() == held
    torch.accelerator.empty_cache()
    accelerator.configure(capacity=measured.reserved)
    assert call.error() <= TOLERANCE
