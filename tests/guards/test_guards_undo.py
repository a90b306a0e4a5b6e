"""What a trace leaves behind is put back, and the walk before it goes no further than the model's own code."""

from __future__ import annotations

import os
from typing import Any

import pytest
from torch import nn

from sicompiler.guards import keep_state
from sicompiler.guards.walk import ModelDescription


class Slotted:
    """An object without a dict."""

    __slots__ = ("rate", "steps")

    def __init__(self) -> None:
        self.rate, self.steps = 0.5, [1, 2]


class Computed(Slotted):
    """A class that computes what a slot of its base would hold, as constants of mpmath do."""

    __slots__ = ()
    rate = property(lambda self: float(len(self.steps)))

    def __init__(self) -> None:
        self.steps = [1, 2]


def test_a_slot_behind_a_property_is_neither_described_nor_put_back() -> None:
    model: Any = nn.Linear(2, 2)
    model.note = Computed()
    undo = keep_state(model, "forward")
    model.note.steps.append(3)
    undo.back()
    assert model.note.steps == [1, 2]


def test_what_cannot_be_put_back_does_not_hold_the_rest() -> None:
    """A class that forbids what it did itself: everything else is as it was, and the reason is raised."""

    class Sealed(Slotted):
        def __setattr__(self, name: str, value: Any) -> None:
            if getattr(self, "rate", 0.5) != 0.5:
                raise AttributeError("sealed")
            object.__setattr__(self, name, value)

    model: Any = nn.Linear(2, 2)
    model.note, model.last = Sealed(), [1]
    undo = keep_state(model, "forward")
    model.note.rate = 0.7
    model.last.append(2)
    with pytest.raises(AttributeError, match="sealed"):
        undo.back()
    assert model.last == [1]


def test_the_walk_ends_at_libraries_and_at_the_test_runner() -> None:
    """pytest rewrites `assert` to calls of its own, from which all of its session could be reached."""

    class Asserting(nn.Module):
        def forward(self, x: Any) -> Any:
            assert x.config.session != x.hook  # names that lead on from a session
            assert os.path.join("a", str(x.dim())) in ("a/1", "a/2")
            return x

    facts = ModelDescription(Asserting(), None).facts
    assert not [path for path in facts if path.startswith("_pytest.assertion.util._config.")]
    assert len(facts) < 500
