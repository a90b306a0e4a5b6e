"""Axis rules of users: with padding, workspace and time of an operator of their own; what depends on them on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sicompiler
from sicompiler import BadInput, FactorMap, OpCall, StalePlan, Window
from sicompiler.axes import registry
from sicompiler.cache.store import Store
from sicompiler.compiler.prepare import prepare
from sicompiler.facts import users
from sicompiler.reports.explain import verdicts


@torch.library.custom_op("tests_of_users::soft_cap", mutates_args=())
def soft_cap(x: Tensor, cap: Tensor) -> Tensor:
    """An operator that is opaque to torch."""
    return torch.div(x, cap).tanh_().mul_(cap)


@soft_cap.register_fake
def _(x: Tensor, cap: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("tests_of_users::blur", mutates_args=())
def blur(x: Tensor, width: int, padding: int) -> Tensor:
    """A mean over windows along the last dim of [n, c, l], with zeros around."""
    return nn.functional.avg_pool1d(x, width, 1, padding)


@blur.register_fake
def _(x: Tensor, width: int, padding: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + 2 * padding - width + 1)


def soft_cap_rule(call: OpCall) -> FactorMap:
    """`([a, c], [c]) -> ([a, c])`: entry by entry."""
    shape = call["x"].shape
    names = [f"n{dim}" for dim in range(len(shape))]
    return FactorMap.of([names, names[-1:]], [names], dict(zip(names, shape, strict=True)))


def blur_rule(call: OpCall) -> FactorMap:
    """`([n, c, l]) -> ([n, c, l]) window={l: k3 s1 p1}`."""
    sizes = dict(zip("ncl", call.results[0].shape, strict=True))
    window = Window(call["width"], 1, call["padding"], call["padding"])
    return FactorMap.of(["ncl"], ["ncl"], sizes, windows={"l": window})


def without_padding(arguments: Mapping[str, Any], dim: int) -> tuple[Mapping[str, Any], float]:
    """What `padding=` of a blur is: the arguments that don't pad, and the number it pads with."""
    return {**arguments, "padding": 0}, 0.0


@pytest.fixture(autouse=True)
def _registered_for_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(users, "_rows", {})


class Capped(nn.Module):
    """A feed-forward whose wide middle goes through the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 256), nn.Linear(256, 32)
        self.cap = nn.Parameter(torch.rand(256) + 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.down(torch.ops.tests_of_users.soft_cap(self.up(x), self.cap))
        return narrow


class Blurred(nn.Module):
    """An image of many channels that is blurred along its width."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(4, 64, 1), nn.Conv1d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.down(torch.ops.tests_of_users.blur(self.up(x), 3, 1))
        return narrow


CAPPED = (torch.randn(1, 4096, 32),)
BLURRED = (torch.randn(1, 4, 4096),)


def floor_of(model: nn.Module, args: tuple[Tensor, ...]) -> int:
    return prepare(model.eval(), args, {})[1].floor()[0]


@pytest.mark.parametrize("operator", [soft_cap, torch.ops.tests_of_users.soft_cap, soft_cap._opoverload], ids=type)
def test_an_operator_is_sliced_once_it_has_a_rule(operator: Any) -> None:
    model = Capped().eval()
    expected, before = model(*CAPPED), floor_of(model, CAPPED)
    sicompiler.rule(operator)(soft_cap_rule)
    after = floor_of(model, CAPPED)
    assert 2 * after < before
    sicompiler.compile_for_budget(model, f"{after} B", example_inputs=(CAPPED, {}), cache=False)
    assert torch.allclose(model(*CAPPED), expected, atol=1e-5)


def test_padding_is_added_at_true_borders_only() -> None:
    model = Blurred().eval()
    expected = model(*BLURRED)
    whole = floor_of(model, BLURRED)
    sicompiler.rule(blur, padding=without_padding)(blur_rule)
    floor_bytes = floor_of(model, BLURRED)
    assert 2 * floor_bytes < whole
    sicompiler.compile_for_budget(model, f"{floor_bytes} B", example_inputs=(BLURRED, {}), cache=False)
    assert sicompiler.report(model).plans[0].regions[0].slices > 1
    assert torch.allclose(model(*BLURRED), expected, atol=1e-6)


def test_a_window_that_pads_is_not_cut_without_its_padding() -> None:
    sicompiler.rule(blur)(blur_rule)
    _, planner = prepare(Blurred().eval(), BLURRED, {})
    shown = " ".join(map(str, verdicts(planner.graph.view, "blur")))
    assert "nothing is known of the padding of tests_of_users.blur.default: give padding= to sicompiler.rule" in shown


def test_workspace_and_flops_are_those_of_the_rows() -> None:
    target = soft_cap._opoverload

    def peak_and_seconds() -> tuple[int, float]:
        _, planner = prepare(Capped().eval(), CAPPED, {})
        return planner.unsliced_bytes, planner.plan(planner.unsliced_bytes).seconds

    sicompiler.rule(soft_cap)(soft_cap_rule)
    copies, cheap = peak_and_seconds()
    users.add_row(target, users.OperatorRow(workspace=lambda call: 0, flops=2000.0))
    nothing, dear = peak_and_seconds()
    assert copies - nothing >= CAPPED[0].nbytes * 8
    assert dear > cheap
    users.add_row(target, users.OperatorRow(flops=lambda call: 2e3 * call.results[0].numel * call.operands[1].numel))
    assert peak_and_seconds()[1] > cheap


WRONG = {
    "not a FactorMap": lambda call: "([a, b])",
    "describes 1 operands, this call has 2": lambda call: FactorMap.of(["abc"], ["abc"], dict.fromkeys("abc", 1)),
    "operands.1. has shape .256.": lambda call: FactorMap.of(["abc", "bc"], ["abc"], {"a": 1, "b": 4096, "c": 256}),
    "operands.0. has 4096 entries in dim 1": lambda call: FactorMap.of(
        ["abc", "c"], ["abc"], {"a": 1, "b": 7, "c": 256}
    ),
    "names a factor 'b' without a size": lambda call: FactorMap.of(["abc", "c"], ["abc"], {"a": 1, "c": 256}),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_map_that_does_not_fit_the_call_is_refused_and_names_the_operator(message: str) -> None:
    sicompiler.rule(soft_cap)(WRONG[message])  # type: ignore[arg-type]
    model = Capped().eval()
    before = dict(model.__dict__)
    with pytest.raises(BadInput, match=f"tests_of_users.soft_cap.default.*{message}"):
        sicompiler.compile_for_budget(model, 1, example_inputs=(CAPPED, {}), cache=False)
    assert model.__dict__ == before


def test_what_is_no_operator_or_has_a_rule_is_refused() -> None:
    with pytest.raises(BadInput, match="takes operators"):
        sicompiler.rule(math.sin)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="takes the operators"):
        sicompiler.rule()
    with pytest.raises(BadInput, match=r"name one: .*Tensor"):
        sicompiler.rule(torch.ops.aten.add)
    with pytest.raises(BadInput, match=r"aten.silu.default has an axis rule already"):
        sicompiler.rule(soft_cap, torch.ops.aten.silu.default)
    for target in (torch.ops.aten.add_.Tensor, torch.ops.aten.bernoulli.default):
        with pytest.raises(BadInput, match=r"writes into its arguments or draws random numbers"):
            sicompiler.rule(target)
    sicompiler.rule(soft_cap)(soft_cap_rule)
    with pytest.raises(BadInput, match="has an axis rule already"):
        sicompiler.rule(soft_cap)(soft_cap_rule)


def test_a_saved_plan_is_refused_once_an_operator_of_its_graph_has_a_rule(tmp_path: Path) -> None:
    model = Capped().eval()
    sicompiler.compile_for_budget(model, 1, example_inputs=(CAPPED, {}), cache=False)
    file = tmp_path / "plan.json"
    file.write_text(sicompiler.report(model).plans[0].to_json(), encoding="utf-8")
    sicompiler.release(model)
    sicompiler.rule(soft_cap)(soft_cap_rule)
    with pytest.raises(StalePlan, match=r"axis rules \(rules\)"):
        sicompiler.compile_for_budget(model, 1, plan=file, example_inputs=(CAPPED, {}), cache=False)


def test_answers_on_disk_are_those_of_the_rules_there_are(tmp_path: Path) -> None:
    """Without a rule, with one, with another, and once a rule comes in between: no answer of one is that of another."""
    store, model = Store(tmp_path), Capped().eval()

    def floor() -> int:
        return prepare(model, CAPPED, {}, store=store)[1].floor()[0]

    def entries() -> int:
        return len(list(tmp_path.rglob("*.entry")))

    whole = floor()
    kept = entries()
    assert floor() == whole
    assert entries() == kept
    before_the_rule = prepare(model, CAPPED, {}, store=store)[1]
    sicompiler.rule(soft_cap)(soft_cap_rule)
    sliced = floor()
    assert 2 * sliced < whole
    assert entries() > kept
    kept = entries()
    before_the_rule.plan(whole)  # analysed before or after the rule, who knows: neither looked up nor kept
    assert entries() == kept
    users.add_row(soft_cap._opoverload, users.OperatorRow(workspace=lambda call: 2**24))
    assert floor() > sliced
    assert entries() > kept
