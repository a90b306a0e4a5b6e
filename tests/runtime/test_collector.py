"""Python's cyclic collector is kept from what was there before, and left as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sicompiler import collector
from sicompiler.collector import Freezer, frozen_gc
from sicompiler.pipelines.eager import eager_peak_bytes

FREED = 0.01  # share of what is frozen that may go meanwhile: nothing holds it any more


@pytest.fixture(autouse=True)
def thawed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nothing was frozen, as users have it."""
    monkeypatch.setattr(collector, "_FREEZER", Freezer())
    gc.unfreeze()
    yield
    gc.freeze()  # as `conftest.py` has it


@pytest.mark.parametrize("frozen", [False, True])
def test_the_collector_is_left_as_it_was(frozen: bool) -> None:
    model, x = nn.Linear(8, 8), torch.randn(8)
    if frozen:
        gc.freeze()
    kept = gc.get_freeze_count()
    assert eager_peak_bytes(model, model.forward, (x,), {}, "cpu") is not None
    assert gc.get_freeze_count() == pytest.approx(kept, rel=FREED)
    assert (kept > 0) == frozen


def test_blocks_in_blocks_freeze_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count, counted = gc.get_freeze_count, list[int]()

    def watched() -> int:
        counted.append(count())
        return counted[-1]

    monkeypatch.setattr(gc, "get_freeze_count", watched)
    with frozen_gc():
        frozen = count()
        with pytest.raises(KeyError), frozen_gc():
            raise KeyError
        assert count() == pytest.approx(frozen, rel=FREED)
        assert frozen > 0
    assert count() == 0
    assert counted == [0]


def test_what_others_have_frozen_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes as long as there are objects: 50 ms a million of them, at every call that is compiled."""
    gc.freeze()
    kept = gc.get_freeze_count()
    with frozen_gc():
        assert gc.get_freeze_count() == pytest.approx(kept, rel=FREED)
    assert gc.get_freeze_count() == pytest.approx(kept, rel=FREED)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: pytest.fail("counted again"))
    with frozen_gc():
        pass
