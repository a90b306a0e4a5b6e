"""What a call notices of the live model: whatever a plan depends on, and at little cost where nothing changed."""

from __future__ import annotations

import enum
import functools
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sicompiler.guards import ModuleGuards, changes
from sicompiler.guards.tensors import bytes_of
from sicompiler.guards.walk import ModelDescription

FACTOR = 2.0
TABLE = {"x": {"y": 2}}


class Mode(enum.Enum):
    """How a processor works."""

    SLOW = 1
    FAST = 2


class Slotted:
    """An object without a dict."""

    __slots__ = ("rate", "steps")

    def __init__(self) -> None:
        self.rate, self.steps = 0.5, [1, 2]


@dataclass
class Options:
    """Settings of a processor."""

    mode: Mode = Mode.SLOW
    sizes: list[int] = field(default_factory=lambda: list(range(300)))
    slotted: Slotted = field(default_factory=Slotted)


class Processor:
    """An attention processor with an object in an object."""

    shared = 1.0

    def __init__(self) -> None:
        self.scale, self.options = 1.0, Options()
        self.bias, self.table, self.seen = torch.zeros(3), np.arange(4.0), deque([torch.ones(2)])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale * self.shared


class Layer(nn.Linear):
    """A layer that calls what it holds."""

    gain = 1.0
    processor: Any

    @property
    def doubled(self) -> float:
        return 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return helper(self.processor(super().forward(x))) * self.gain * self.doubled * FACTOR * TABLE["x"]["y"]


class Doubled(nn.Linear):
    """A layer of another class with the same settings."""


def helper(x: torch.Tensor) -> torch.Tensor:
    """What a layer calls by name."""
    return nn.functional.silu(x)


def other_processor(*_: Any) -> None:
    """An attention processor that is a function."""


def scaled(scale: float) -> Callable[..., Any]:
    """A forward with a variable in its closure."""
    return lambda x: x * scale


class Model(nn.Module):
    """A model with a setting of every form that occurs in diffusers and peft."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"scale": 1.0, "blocks": ["down", "up"]}
        self.ready, self.count, self.shares = False, 1, (2, 0.5)
        first: Any = nn.Linear(4, 4)
        second: Any = Layer(4, 4)
        self.inner = nn.Sequential(first, second, nn.Dropout())
        first.scaling = {"adapter": 1.0}
        first.chosen = {"a", "b"}
        second.processor = Processor()
        second.switches = ["a"]
        self.register_buffer("table", torch.zeros(3))
        self.note = torch.zeros(2)
        self.itself = [self]
        self.twin: Any = nn.Linear(4, 4)
        self.twin.weight = self.inner[0].weight  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def added(model: Any) -> None:
    model.inner[0].lora = nn.Linear(4, 4)


def swapped_class(model: Any) -> None:
    model.inner[1].__class__ = Doubled


def shorter(model: Any) -> None:
    del model.inner[2]


def processor(model: Any) -> Any:
    return model.inner[1].processor


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a switch": lambda m: setattr(m, "ready", True),
    "a number of another type": lambda m: setattr(m, "count", True),
    "minus zero": lambda m: setattr(processor(m), "scale", -0.0),
    "a tuple": lambda m: setattr(m, "shares", (2, 0.25)),
    "a new setting": lambda m: setattr(m.inner[0], "freeu", 1.2),
    "a setting taken away": lambda m: delattr(m.inner[0], "scaling"),
    "training": lambda m: m.inner[2].train(not m.inner[2].training),
    "the scale of an adapter": lambda m: m.inner[0].scaling.update(adapter=0.5),
    "an entry of a list": lambda m: m.inner[1].switches.append("b"),
    "the last entry of a long list": lambda m: processor(m).options.sizes.__setitem__(-1, 7),
    "a member of a set": lambda m: m.inner[0].chosen.add("c"),
    "the configuration": lambda m: m.config.update(scale=2.0),
    "a list in the configuration": lambda m: m.config["blocks"].append("mid"),
    "a setting of a processor": lambda m: setattr(processor(m), "scale", 0.0),
    "another processor": lambda m: setattr(m.inner[1], "processor", other_processor),
    "a member of an enumeration": lambda m: setattr(processor(m).options, "mode", Mode.FAST),
    "a slot of an object two levels down": lambda m: setattr(processor(m).options.slotted, "rate", 0.25),
    "a list in a slot": lambda m: processor(m).options.slotted.steps.append(3),
    "a tensor of a processor in place": lambda m: processor(m).bias.add_(1),
    "a tensor of a processor through .data": lambda m: processor(m).bias.data.add_(1),
    "another tensor in a processor": lambda m: setattr(processor(m), "bias", torch.zeros(3)),
    "a tensor in a deque in place": lambda m: processor(m).seen[0].mul_(2),
    "an array": lambda m: processor(m).table.__setitem__(2, 9.0),
    "a method of an object": lambda m: setattr(processor(m), "__call__", other_processor),
    "a module put in": added,
    "a module taken out": shorter,
    "a module that is none": lambda m: m.inner.__dict__["_modules"].update({"2": None}),
    "a module of another class": lambda m: m.inner.__setitem__(0, Doubled(4, 4)),
    "the class of a module": swapped_class,
    "weights of another dtype": lambda m: m.inner[1].to(torch.float64),
    "weights without memory": lambda m: m.inner[1].to("meta"),
    "a weight of another shape": lambda m: setattr(m.inner[1], "weight", nn.Parameter(torch.zeros(2, 4))),
    "a weight of other strides": lambda m: setattr(m.inner[1].weight, "data", torch.zeros(4, 4).t()),
    "a bias that is none": lambda m: setattr(m.inner[1], "bias", None),
    "a weight that is shared no more": lambda m: setattr(m.twin, "weight", nn.Parameter(torch.zeros(4, 4))),
    "a buffer of another shape": lambda m: setattr(m, "table", torch.zeros(4)),
    "a buffer of another dtype": lambda m: setattr(m, "table", torch.zeros(3, dtype=torch.int64)),
    "a new buffer": lambda m: m.inner[2].register_buffer("mask", torch.zeros(1)),
    "a hook": lambda m: m.inner[0].register_forward_hook(lambda *_: None),
    "a hook before": lambda m: m.inner[0].register_forward_pre_hook(lambda *_: None),
    "a tensor that is no buffer": lambda m: setattr(m, "note", torch.zeros(2)),
    "a forward of the instance": lambda m: setattr(m.inner[0], "forward", scaled(2.0)),
    "a forward of a partial": lambda m: setattr(m.inner[0], "forward", functools.partial(other_processor, 2)),
    "an object in its place": lambda m: setattr(m.inner[1], "processor", SimpleNamespace(scale=1.0)),
}

SAME: dict[str, Callable[[Any], Any]] = {
    "values of weights": lambda m: m.inner[1].weight.data.add_(1),
    "another weight of the same layout": lambda m: setattr(m.inner[1], "weight", nn.Parameter(torch.ones(4, 4))),
    "an equal number": lambda m: setattr(m, "shares", (int("2"), float("0.5"))),
    "another module alike": lambda m: m.inner.__setitem__(2, nn.Dropout()),
    "an equal list": lambda m: setattr(m.inner[1], "switches", ["a"]),
    "a hook put in and taken off": lambda m: m.inner[0].register_forward_hook(lambda *_: None).remove(),
    "a hook around the model itself": lambda m: m.register_forward_hook(lambda *_: None),
    "a function of the class that no code names": lambda m: setattr(Layer, "save_to", other_processor),
}


CALLS = pytest.mark.parametrize("calls", [1, 4])  # from the third one on, what has not changed is told by lists


@CALLS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_a_plan_depends_on_is_noticed(change: Callable[[Any], Any], calls: int) -> None:
    model, known = Model(), ModuleGuards()
    before = known.key(model)
    facts = known.facts
    assert all(known.key(model) == before for _ in range(calls))
    change(model)
    after = known.key(model)
    assert after != before
    assert changes(facts, known.facts)
    assert after == ModuleGuards().key(model) == known.key(model), "as if seen for the first time"


@CALLS
@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_what_no_plan_depends_on_leaves_the_key_alone(change: Callable[[Any], Any], calls: int) -> None:
    model, known = Model(), ModuleGuards()
    before = known.key(model)
    assert all(known.key(model) == before for _ in range(calls))
    change(model)
    assert all(known.key(model) == before for _ in range(calls))
    assert ModuleGuards().key(model) == before


CODE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a method of the class": lambda p: p.setattr(Layer, "forward", other_processor),
    "a method of the class it inherits from": lambda p: p.setattr(nn.Linear, "forward", other_processor),
    "a method of the class of an object": lambda p: p.setattr(Processor, "__call__", other_processor),
    "a number of the class": lambda p: p.setattr(Layer, "gain", 2.0),
    "a number of the class of an object": lambda p: p.setattr(Processor, "shared", 2.0),
    "a property": lambda p: p.setattr(Layer, "doubled", property(lambda _: 3.0)),
    "the code of a function": lambda p: p.setattr(helper, "__code__", (lambda x: x).__code__),
    "a function called by name": lambda p: p.setitem(globals(), "helper", other_processor),
    "a number read by name": lambda p: p.setitem(globals(), "FACTOR", 3.0),
    "a dict inside of a dict read by name": lambda p: p.setitem(TABLE["x"], "y", 5),
    "a function of torch": lambda p: p.setattr(nn.functional, "silu", other_processor),
}


@CALLS
@pytest.mark.parametrize("change", CODE.values(), ids=CODE.keys())
def test_code_outside_of_the_model_is_noticed_and_found_again_when_it_is_put_back(
    change: Callable[[pytest.MonkeyPatch], None], calls: int
) -> None:
    model, known = Model(), ModuleGuards()
    before = known.key(model)
    assert all(known.key(model) == before for _ in range(calls))
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        assert known.key(model) != before
    assert known.key(model) == before


def test_what_changes_back_has_its_old_key() -> None:
    model: Any = Model()
    known = ModuleGuards()
    before = known.key(model)
    model.inner[0].scaling["adapter"] = 0.5
    assert known.key(model) != before
    model.inner[0].scaling["adapter"] = 1.0
    assert known.key(model) == before


def test_variables_of_closures_are_told_apart_by_their_content() -> None:
    model: Any = Model()
    known = ModuleGuards()
    keys = []
    for scale in (2.0, 3.0, 2.0):
        model.inner[0].forward = scaled(scale)
        keys.append(known.key(model))
    assert keys[0] == keys[2] != keys[1]


def test_an_address_that_is_used_again_is_another_object() -> None:
    """Tensors made and dropped in a loop lie at the same address, and hold the same."""
    model: Any = Model()
    known = ModuleGuards()
    keys = set()
    for _ in range(10):
        del model.note
        model.note = torch.zeros(2)
        keys.add(known.key(model))
    assert len(keys) == 10


def test_a_call_describes_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second key costs the comparison of a thousand layers."""
    model: Any = nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000)))
    model[7].scaling = {"adapter": 1.0}
    known = ModuleGuards()
    before = known.key(model)
    monkeypatch.setattr(ModelDescription, "__init__", lambda *_: pytest.fail("described again"))
    assert known.key(model) == before


@CALLS
def test_nothing_of_the_model_is_kept_alive(calls: int) -> None:
    model: Any = Model()
    known = ModuleGuards()
    model.itself.clear()
    for _ in range(calls):
        known.key(model)
    kept = [weakref.ref(x) for x in (model, model.inner[0], model.inner[1].weight, model.inner[1].processor.bias)]
    del model
    assert [ref() for ref in kept] == [None] * 4


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.inner[0].scaling.update(adapter=0.5), "`inner.0.scaling['adapter']` 1.0 -> 0.5"),
        (lambda m: setattr(m.inner[0], "forward", other_processor), "`inner.0.forward` was replaced"),
        (lambda m: setattr(m, "note", torch.ones(5)), "`note` was replaced"),
        (lambda m: m.note.add_(1), "`note` was written into"),
        (lambda m: m.inner[1].bfloat16(), "`inner.1.weight` has another layout: (4, 4) float32 -> (4, 4) bfloat16"),
        (lambda m: m.inner[0].register_forward_hook(scaled(1.0)), "`inner.0 forward hooks` is new"),
        (added, "`inner.0.lora.weight` is new"),
    ],
)
def test_a_change_is_told_by_its_name(change: Callable[[Any], Any], line: str) -> None:
    model, known = Model(), ModuleGuards()
    known.key(model)
    before = known.facts
    change(model)
    known.key(model)
    assert line in changes(before, known.facts)


class Owner:
    """What a hook refers to: a pipeline with another model and a scheduler that counts its steps."""

    def __init__(self) -> None:
        self.other, self.strength, self.steps = nn.Linear(2, 2), 1.0, [0]


def test_of_an_object_that_owns_other_models_only_what_code_names_counts() -> None:
    model, owner, known = Model(), Owner(), ModuleGuards()
    model.inner[0].register_forward_hook(lambda module, args, result: result * owner.strength)
    before = known.key(model)
    owner.steps.append(1)
    owner.other.double()
    assert known.key(model) == before
    owner.strength = 0.5
    assert known.key(model) != before


def test_weights_of_a_foreign_model_are_constants() -> None:
    model, owner, known = Model(), Owner(), ModuleGuards()
    model.inner[0].register_forward_hook(lambda module, args, result: owner.other(result))
    keys = [known.key(model)]
    with torch.no_grad():
        owner.other.weight.add_(1)
    keys.append(known.key(model))
    owner.other = nn.Linear(2, 2)
    keys.append(known.key(model))
    assert len(set(keys)) == 3


def test_weights_that_are_shared_no_more_where_they_stood_first() -> None:
    model, known = Model(), ModuleGuards()
    before = known.key(model)
    model.inner[0].weight = nn.Parameter(torch.zeros(4, 4))
    assert known.key(model) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int64])
def test_bytes_of_a_tensor_are_those_of_its_values(dtype: torch.dtype) -> None:
    """Whatever its strides: an expanded dim, one entry with stride 0, none at all."""
    values = torch.arange(6).reshape(2, 3).to(dtype)
    for tensor in (values.T, values[:1, :1].expand(1, 4), values[0, :1].expand(1), values[:0], values[0, 0]):
        dense = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
        assert bytes_of(tensor) == bytes_of(dense)
        assert len(bytes_of(tensor)) == tensor.numel() * dtype.itemsize
    assert bytes_of(values) != bytes_of(values.flip(0)) or dtype is torch.bool
