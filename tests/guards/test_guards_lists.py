"""Code that is told in lists to be as it was: whatever is set on it, in it or beside it is seen at the next call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from sicompiler.guards import ModuleGuards
from sicompiler.guards.quick import Quick, lasts
from sicompiler.guards.together import layouts_of

STEPS, MORE = [1.0, 2.0], [3.0]
NAMES = {"a", "b"}
BY_NAME: dict[str, Any] = {"scale": [lambda x: x, lambda x: 2 * x]}
CLOSED = 1.0


def scaled(x: torch.Tensor, by: float = 1.0, *, and_by: float = 1.0) -> torch.Tensor:
    """A function with defaults."""
    return x * by * and_by


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: what it decorates is a variable of a closure."""
    calls = 2.0

    @functools.wraps(function)
    def wrapper(x: torch.Tensor) -> Any:
        return function(x) * calls

    return wrapper


@dataclass
class Options:
    """Settings."""

    rate: float = 1.0
    steps: list[float] = field(default_factory=list)


class Layer(nn.Module):
    """A layer of code of every kind."""

    options = Options

    @property
    def doubled(self) -> float:
        return 2.0

    @staticmethod
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @kept
    def closed(x: torch.Tensor) -> torch.Tensor:  # noqa: N805  # static, by the wrapper
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.halved(scaled(x)) * self.doubled * sum(STEPS) * len(MORE)
        rate: Any = self.options.__dataclass_fields__["rate"].default
        result: torch.Tensor = BY_NAME["scale"][0](y) * len(NAMES) * rate * type(self).closed(x)
        return result


def other(x: torch.Tensor) -> torch.Tensor:
    """Another function of one argument."""
    return x + 1


def between_lists() -> Callable[[], None]:
    """The entries of two lists that lie one after the other, parted elsewhere."""
    MORE.insert(0, STEPS.pop())
    return lambda: STEPS.append(MORE.pop(0))


def in_place(of: Any, name: str, value: Any) -> Callable[[], Callable[[], None]]:
    """Set an attribute, and give back what sets it back."""

    def change() -> Callable[[], None]:
        before = getattr(of, name)
        setattr(of, name, value)
        return lambda: setattr(of, name, before)

    return change


def another_getter() -> Callable[[], None]:
    prop: Any = Layer.__dict__["doubled"]
    before = prop.fget
    prop.__init__(lambda _: 3.0)
    return lambda: prop.__init__(before)


def an_attribute() -> Callable[[], None]:
    scaled.__dict__["by"] = 3.0
    return lambda: scaled.__dict__.clear()


def a_member() -> Callable[[], None]:
    NAMES.add("c")
    return lambda: NAMES.remove("c")


def an_entry() -> Callable[[], None]:
    before, BY_NAME["scale"][0] = BY_NAME["scale"][0], other
    return lambda: BY_NAME["scale"].__setitem__(0, before)


_CELLS: Any = Layer.__dict__["closed"].__closure__
_FIELD: Any = Options.__dict__["__dataclass_fields__"]["rate"]
CHANGES: dict[str, Callable[[], Callable[[], None]]] = {
    "the code of a function": in_place(scaled, "__code__", (lambda x, by=1.0, *, and_by=1.0: x).__code__),
    "a default": in_place(scaled, "__defaults__", (2.0,)),
    "a default of a name": in_place(scaled, "__kwdefaults__", {"and_by": 2.0}),
    "an attribute of a function": an_attribute,
    "the code of a static method": in_place(Layer.halved, "__code__", other.__code__),
    "the function of a property": another_getter,
    "a variable of a closure": in_place(_CELLS[0], "cell_contents", 3.0),
    "a function in a closure": in_place(_CELLS[1], "cell_contents", other),
    "the code of a function in a closure": in_place(_CELLS[1].cell_contents, "__code__", other.__code__),
    "entries from one list to the next": between_lists,
    "a member of a set": a_member,
    "a function in a list in a dict": an_entry,
    "a field of a dataclass": in_place(_FIELD, "default", 2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_seen_and_its_undoing(change: Callable[[], Callable[[], None]]) -> None:
    model, known = nn.Sequential(Layer()), ModuleGuards()
    before = known.key(model)
    assert [known.key(model) for _ in range(4)] == [before] * 4
    undo = change()
    try:
        after = known.key(model)
        assert [known.key(model) for _ in range(4)] == [after] * 4 != [before] * 4
    finally:
        undo()
    assert known.key(model) == ModuleGuards().key(model)


def test_once_the_lists_are_made_no_function_is_asked_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what they are for."""
    from sicompiler.guards.functions import FunctionGuard
    from sicompiler.guards.tensors import RegisteredGuard

    model, known = nn.Sequential(Layer(), *(nn.Linear(2, 2) for _ in range(9))), ModuleGuards()
    keys = [known.key(model) for _ in range(4)]
    monkeypatch.setattr(FunctionGuard, "holds", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(RegisteredGuard, "holds", lambda *_: pytest.fail("asked"))
    assert {known.key(model), *keys} == {keys[0]}


def test_globals_that_change_all_the_time_do_not_spoil_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter in the module, which no code of the model reads."""
    made: list[Quick] = []

    class Noted(Quick):
        def __init__(self) -> None:
            made.append(self)
            super().__init__()

    monkeypatch.setattr("sicompiler.guards.places.Quick", Noted)
    model, known = nn.Sequential(Layer()), ModuleGuards()
    before = known.key(model)
    for count in range(20):
        globals()["COUNT"] = count
        assert known.key(model) == before
    assert len(made) < 6


def test_only_classes_that_their_module_keeps_are_kept() -> None:
    class Local:
        pass

    assert lasts(Layer)
    assert lasts(nn.Linear)
    assert not lasts(Local)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: setattr(w, "data", w.data.double()),
        lambda w: setattr(w, "data", torch.zeros(4, 4).t()),
        lambda w: setattr(w, "data", torch.zeros(4, 2)),
    ],
    ids=["dtype", "strides", "size"],
)
def test_layouts_of_tensors_are_told_without_a_step_of_python_for_each(change: Callable[[Any], object]) -> None:
    tensors = [nn.Parameter(torch.zeros(4, 4)), torch.zeros(3)]
    same = layouts_of(tensors)
    tensors[0].data = torch.ones(4, 4)
    assert same(*tensors), "values don't count"
    change(tensors[0])
    assert not same(*tensors)
