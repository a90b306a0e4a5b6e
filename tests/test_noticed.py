"""What a call notices of the live model: whatever a plan depends on, and at little cost where nothing changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sicompiler.runtime import noticed
from sicompiler.runtime.noticed import Noticed


class Doubled(nn.Linear):
    """A layer of another class with the same settings."""


def other_processor(*_: Any) -> None:
    """An attention processor that is a function."""


class Model(nn.Module):
    """A model with a setting of every form that occurs in diffusers and peft."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"scale": 1.0, "blocks": ["down", "up"]}
        self.ready, self.count, self.shares = False, 1, (2, 0.5)
        first: Any = nn.Linear(4, 4)
        second: Any = nn.Linear(4, 4)
        self.inner = nn.Sequential(first, second, nn.Dropout())
        first.scaling = {"adapter": 1.0}
        second.processor = SimpleNamespace(scale=1.0)
        second.switches = ["a"]
        self.register_buffer("table", torch.zeros(3))
        self.note = torch.zeros(2)


def added(model: Any) -> None:
    model.inner[0].lora = nn.Linear(4, 4)


def swapped_class(model: Any) -> None:
    model.inner[1].__class__ = Doubled


def shorter(model: Any) -> None:
    del model.inner[2]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a switch": lambda m: setattr(m, "ready", True),
    "a number of another type": lambda m: setattr(m, "count", True),
    "a tuple": lambda m: setattr(m, "shares", (2, 0.25)),
    "a new setting": lambda m: setattr(m.inner[0], "freeu", 1.2),
    "a setting taken away": lambda m: delattr(m.inner[0], "scaling"),
    "training": lambda m: m.inner[2].train(not m.inner[2].training),
    "the scale of an adapter": lambda m: m.inner[0].scaling.update(adapter=0.5),
    "an entry of a list": lambda m: m.inner[1].switches.append("b"),
    "the configuration": lambda m: m.config.update(scale=2.0),
    "a list in the configuration": lambda m: m.config["blocks"].append("mid"),
    "a setting of a processor": lambda m: setattr(m.inner[1].processor, "scale", 0.0),
    "another processor": lambda m: setattr(m.inner[1], "processor", other_processor),
    "a module put in": added,
    "a module taken out": shorter,
    "a module that is none": lambda m: m.inner.__dict__["_modules"].update({"2": None}),
    "a module of another class": lambda m: m.inner.__setitem__(0, Doubled(4, 4)),
    "the class of a module": swapped_class,
    "weights of another dtype": lambda m: m.inner[1].to(torch.float64),
    "weights without memory": lambda m: m.inner[1].to("meta"),
    "a weight of another shape": lambda m: setattr(m.inner[1], "weight", nn.Parameter(torch.zeros(2, 4))),
    "a bias that is none": lambda m: setattr(m.inner[1], "bias", None),
    "a buffer of another shape": lambda m: setattr(m, "table", torch.zeros(4)),
    "a buffer of another dtype": lambda m: setattr(m, "table", torch.zeros(3, dtype=torch.int64)),
    "a new buffer": lambda m: m.inner[2].register_buffer("mask", torch.zeros(1)),
}

SAME: dict[str, Callable[[Any], Any]] = {
    "values of weights": lambda m: m.inner[1].weight.data.add_(1),
    "another weight of the same layout": lambda m: setattr(m.inner[1], "weight", nn.Parameter(torch.ones(4, 4))),
    "an equal number": lambda m: setattr(m, "shares", (int("2"), float("0.5"))),
    "another module alike": lambda m: m.inner.__setitem__(2, nn.Dropout()),
    "hooks": lambda m: m.inner[0].register_forward_hook(lambda *_: None),
    "a hook of accelerate": lambda m: setattr(m.inner[0], "_hf_hook", object()),
    "a tensor that is no buffer": lambda m: setattr(m, "note", torch.ones(5)),
    "the forward of the model itself": lambda m: setattr(m, "forward", other_processor),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_a_plan_depends_on_is_noticed(change: Callable[[Any], Any]) -> None:
    model, known = Model(), Noticed()
    before = known.key(model)
    assert known.key(model) == before
    change(model)
    after = known.key(model)
    assert after != before
    assert after == Noticed().key(model) == known.key(model), "as if seen for the first time"


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_what_no_plan_depends_on_leaves_the_key_alone(change: Callable[[Any], Any]) -> None:
    model, known = Model(), Noticed()
    before = known.key(model)
    change(model)
    assert known.key(model) == before == Noticed().key(model)


def test_what_changes_back_has_its_old_key() -> None:
    model: Any = Model()
    known = Noticed()
    before = known.key(model)
    model.inner[0].scaling["adapter"] = 0.5
    assert known.key(model) != before
    model.inner[0].scaling["adapter"] = 1.0
    assert known.key(model) == before


def test_a_call_describes_only_what_can_change_inside_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second key costs the comparison of a thousand layers; what is described again is one dict."""
    model: Any = nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000)))
    model[7].scaling = {"adapter": 1.0}
    described: list[str] = []

    def counted(name: str) -> None:
        function = getattr(noticed, name)

        def count(*args: Any) -> Any:
            described.append(name)
            return function(*args)

        monkeypatch.setattr(noticed, name, count)

    counted("_described")
    counted("stand_in")
    known = Noticed()
    known.key(model)
    assert described.count("_described") == 1001
    described.clear()
    known.key(model)
    assert described == ["stand_in", "stand_in"], "the dict and its entry"


def test_nothing_of_the_model_is_kept_alive() -> None:
    model, known = Model(), Noticed()
    known.key(model)
    kept = [weakref.ref(x) for x in (model, model.inner[0], model.inner[1].weight)]
    del model
    assert [ref() for ref in kept] == [None] * 3
