"""Plans: carried out on the graph they count, or refused as `StalePlan`; never other regions, never another error."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sicompiler
from sicompiler import Plan
from sicompiler.api import prepare
from sicompiler.axes import registry
from sicompiler.axes.factor_map import FactorKind, FactorMap
from sicompiler.capture import Program, fingerprint
from sicompiler.compiler import analyzed_graph, basis, search
from sicompiler.compiler.analysis import Analysis
from sicompiler.compiler.analyzed_graph import AnalyzedGraph
from sicompiler.compiler.planner import Planner, rewrite
from sicompiler.compiler.restore import check_prediction, restore
from sicompiler.device import table
from sicompiler.facts.workspace import cpu
from sicompiler.passes import manager
from sicompiler.passes.edit import copy_program
from sicompiler.planners import region_cost
from sicompiler.regions import builder
from tests.passes import test_rematerialize
from tests.source_tree import library_modules

Inputs = tuple[torch.Tensor, ...]


class Level(nn.Module):
    """Group norm of an upsampled value: its plans slice, rematerialize, loop over samples, and offload."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.up = nn.Conv2d(4, 12, 3, padding=1), nn.Upsample(scale_factor=2)
        self.wide, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.out = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(nn.functional.silu(self.norm(self.wide(self.up(self.inp(x))))))
        return y


class Tower(nn.Module):
    """Linear layers with large weights: its plans stream them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(layer(x)) + x
        return x


@pytest.fixture(scope="module")
def level() -> tuple[Program, Planner]:
    torch.manual_seed(0)
    return prepare(Level().double().eval(), (torch.randn(2, 4, 24, 20, dtype=torch.float64),), {})


@pytest.fixture(scope="module")
def single() -> tuple[Program, Planner]:
    """One sample: no outer loop, values are rematerialized."""
    torch.manual_seed(0)
    return prepare(test_rematerialize.Level().double().eval(), (torch.randn(1, 12, 64, 48, dtype=torch.float64),), {})


@pytest.fixture(scope="module")
def tower() -> tuple[Program, Planner]:
    torch.manual_seed(0)
    return prepare(Tower().double().eval(), (torch.randn(1, 64, 96, dtype=torch.float64),), {})


def plans_of(planner: Planner) -> list[Plan]:
    """Plans for budgets from the floor with offloading to the unsliced peak, without those that repeat."""
    lowest, top = planner.floor("auto")[0], planner.unsliced_bytes
    budgets = [lowest + (top - lowest) * part // 6 for part in range(7)] + [planner.floor()[0]]
    found = {replace(p, budget_bytes=0): p for b in budgets for p in [planner.plan(b, offload="auto")]}
    return list(found.values())


@pytest.fixture(scope="module")
def cases(
    level: tuple[Program, Planner], single: tuple[Program, Planner], tower: tuple[Program, Planner]
) -> list[tuple[AnalyzedGraph, Plan]]:
    """Plans of every kind, each with the legal graph it is of."""
    planners = [planner for _, planner in (level, single, tower)]
    found = [(planner.graph, plan) for planner in planners for plan in plans_of(planner)]
    assert any(plan.outer for _, plan in found)
    assert any(plan.rematerialized for _, plan in found)
    assert any(plan.spilled for _, plan in found)
    assert any(plan.streamed and plan.prefetched for _, plan in found)
    assert any(plan.regions for _, plan in found)
    return found


def test_what_a_plan_predicts_is_worked_out_again_to_the_byte(cases: list[tuple[AnalyzedGraph, Plan]]) -> None:
    for graph, plan in cases:
        read = Plan.from_json(plan.to_json())
        assert read == plan
        restored = restore(Analysis(graph), read)
        check_prediction(restored, read)
        assert [(r.start, r.stop) for r, _ in restored.regions] == [(r.start, r.stop) for r in plan.regions]


def carried(graph: AnalyzedGraph, plan: Plan) -> list[tuple[int, int, Any, int]]:
    """The regions that a plan comes to where it is carried out."""
    restored = restore(Analysis(graph), plan)
    check_prediction(restored, plan)
    return [(found.start, found.stop, found.seed, length) for found, length in restored.regions]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON document are."""
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in rows for found in [(*path, key), *_paths(part, (*path, key))]]


_VALUES = st.one_of(
    st.integers(-3, 400), st.floats(allow_nan=False), st.text(max_size=3), st.none(), st.booleans(), st.just([]),
    st.just({}), st.just([[0, 1]]), st.sampled_from([10**30, -(2**63), 1e300]),
)  # fmt: skip


@given(data=st.data())
def test_a_file_that_was_changed_is_refused_and_names_the_field(
    cases: list[tuple[AnalyzedGraph, Plan]], data: st.DataObject
) -> None:
    _, plan = cases[data.draw(st.integers(0, len(cases) - 1))]
    document = json.loads(plan.to_json())
    paths = _paths(document)
    path = paths[data.draw(st.integers(0, len(paths) - 1))]
    *above, last = path
    holder: Any = document
    for key in above:
        holder = holder[key]
    before = holder[last]
    if data.draw(st.booleans(), "remove"):
        del holder[last]
    else:
        holder[last] = data.draw(_VALUES)
        if holder[last] == before and type(holder[last]) is type(before):
            return
    with pytest.raises(sicompiler.StalePlan) as refused:
        Plan.from_json(json.dumps(document))
    assert "version" in str(refused.value) or str(path[0]) in str(refused.value) or path[0] == "checksums"


_CHANGES: dict[str, Callable[[Plan, int], Plan]] = {
    "start": lambda p, n: replace(p, regions=tuple(replace(r, start=r.start + n) for r in p.regions)),
    "stop": lambda p, n: replace(p, regions=tuple(replace(r, stop=r.stop + n) for r in p.regions)),
    "slice_length": lambda p, n: replace(
        p, regions=tuple(replace(r, slice_length=r.slice_length + n) for r in p.regions)
    ),
    "seed.dim": lambda p, n: _seeds(p, dim=n),
    "seed.outer": lambda p, n: _seeds(p, outer=n),
    "seed.inner": lambda p, n: _seeds(p, inner=n),
    "order": lambda p, n: replace(p, regions=p.regions[::-1]),
    "spilled": lambda p, n: replace(p, spilled=(*p.spilled, n)),
    "streamed": lambda p, n: replace(p, streamed=(*p.streamed, f"layers.{n}.weight")),
    "not streamed": lambda p, n: replace(p, streamed=p.streamed[1:]),
    "prefetched": lambda p, n: replace(p, prefetched=(*p.prefetched, (n + 1, n))),
    "rematerialized_bytes": lambda p, n: replace(p, rematerialized_bytes=abs(n) * 2**14),
    "predicted_peak_bytes": lambda p, n: replace(p, predicted_peak_bytes=p.predicted_peak_bytes + n),
    "outer": lambda p, n: replace(p, outer=p.outer and replace(p.outer, slice_length=p.outer.slice_length + n)),
    "outer.seeds": lambda p, n: replace(
        p, outer=p.outer and replace(p.outer, seeds=tuple((q + n, s) for q, s in p.outer.seeds))
    ),
    "no outer": lambda p, n: replace(p, outer=None),
}


def _seeds(plan: Plan, **by: int) -> Plan:
    regions = tuple(
        replace(r, seed=replace(r.seed, **{k: getattr(r.seed, k) + n for k, n in by.items()})) for r in plan.regions
    )
    return replace(plan, regions=regions)


@given(data=st.data())
def test_a_value_that_was_changed_comes_to_the_same_regions_or_is_refused(
    cases: list[tuple[AnalyzedGraph, Plan]], data: st.DataObject
) -> None:
    graph, plan = cases[data.draw(st.integers(0, len(cases) - 1))]
    name = data.draw(st.sampled_from(sorted(_CHANGES)))
    try:
        found = carried(graph, _CHANGES[name](plan, data.draw(st.integers(-40, 40), "by")))
    except sicompiler.StalePlan:
        return
    assert found == carried(graph, plan)


def _rule(change: Callable[[FactorMap], FactorMap | None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Change the rule of one operator of `Level`."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        target = torch.ops.aten.silu.default
        own = registry.rules()[target]
        patch.setitem(registry._RULES, target, lambda call: change(own(call)))

    return apply


def _extra_pass(program: Program) -> None:
    """Put a copy of the first operator beside it."""
    graph = program.graph_module.graph
    node = next(n for n in graph.nodes if n.op == "call_function")
    with graph.inserting_after(node):
        graph.node_copy(node, lambda n: n).meta["val"] = node.meta["val"]


def _without(stage: str, index: int) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(patch: pytest.MonkeyPatch) -> None:
        runs = manager.PIPELINE[stage]
        patch.setitem(manager.PIPELINE, stage, runs[:index] + runs[index + 1 :])

    return apply


def _threshold(module: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, name, 2 * getattr(module, name) + 1)


_ELSEWHERE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a pass more": lambda patch: patch.setitem(
        manager.PIPELINE, "legal", (*manager.PIPELINE["legal"], _extra_pass)
    ),
    "a pass less": _without("clean", 1),
    "a pass after the plan less": _without("rewritten", 0),
    "a pass that does something else": lambda patch: patch.setitem(
        manager.PIPELINE, "legal", (manager.PIPELINE["legal"][0], _extra_pass)
    ),
    "a rule that forbids": _rule(lambda found: replace(found, kinds=dict.fromkeys(found.sizes, FactorKind.WHOLE))),
    "a rule less": _rule(lambda found: None),
    "HOISTED_BYTES": _threshold(builder, "HOISTED_BYTES"),
    "OUTER_HOISTED_BYTES": _threshold(analyzed_graph, "OUTER_HOISTED_BYTES"),
    "REMATERIALIZED_SHARE": _threshold(search, "REMATERIALIZED_SHARE"),
    "SPILL_SHARE": _threshold(search, "SPILL_SHARE"),
    "MAX_WINDOWS": _threshold(region_cost, "MAX_WINDOWS"),
    "DOUBT": _threshold(table, "DOUBT"),
    "another torch": lambda patch: patch.setattr(torch, "__version__", "2.99.0"),
}  # fmt: skip


@pytest.mark.parametrize("change", _ELSEWHERE)
def test_a_plan_made_under_other_passes_rules_or_thresholds_is_refused(
    level: tuple[Program, Planner], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, planner = level
    plans = [plan for plan in plans_of(planner) if plan.regions]
    assert plans
    _ELSEWHERE[change](monkeypatch)
    for plan in plans:
        with pytest.raises(sicompiler.StalePlan, match="plan again"):
            rewrite(program, plan)


def test_another_version_of_sicompiler_is_refused(
    level: tuple[Program, Planner], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, planner = level
    plan = planner.plan(planner.unsliced_bytes)
    with pytest.raises(sicompiler.StalePlan, match=r"made for sicompiler 0\.0\.1, but this is"):
        rewrite(program, replace(plan, sicompiler_version="0.0.1"))


def test_a_plan_of_a_machine_whose_kernels_take_other_workspace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Level().double().eval(), torch.randn(2, 4, 24, 20, dtype=torch.float64)
    _, planner = prepare(model, (x,), {})
    plan = planner.plan(planner.floor()[0])
    target = torch.ops.aten.conv2d.default
    own = cpu.ROWS[target]
    monkeypatch.setitem(cpu.ROWS, target, lambda call: own(call) + 2**12)
    before = dict(model.__dict__)
    with pytest.raises(sicompiler.StalePlan, match="another machine or number of threads"):
        sicompiler.compile_for_budget(model, 1, plan=plan, example_inputs=((x,), {}))
    assert model.__dict__.keys() == before.keys()


def test_a_given_plan_keeps_the_budget_and_is_never_replaced_silently(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Level().double().eval(), torch.randn(2, 4, 24, 20, dtype=torch.float64)
    _, planner = prepare(model, (x,), {})
    plan = planner.plan(planner.unsliced_bytes)
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    with pytest.raises(sicompiler.OverBudget, match="the plan of Level needs"):
        sicompiler.compile_for_budget(model, f"{plan.predicted_peak_bytes - 1}B", plan=path, example_inputs=((x,), {}))
    sicompiler.compile_for_budget(model, 1, plan=path)
    for _ in range(2):
        with pytest.raises(sicompiler.StalePlan, match="fingerprint"):
            model(x[:1])
    model(x)
    assert sicompiler.report(model).plan == plan
    sicompiler.release(model)
    other = copy.deepcopy(model)
    other.out.weight = nn.Parameter(torch.cat([model.out.weight.detach()] * 2)[:4])  # a view of twice the memory
    with pytest.raises(sicompiler.StalePlan, match="bytes of weights"):
        sicompiler.compile_for_budget(other, 1, plan=path, example_inputs=((x,), {}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("\x00\x01", "it is no JSON"),
        ("[1]", "a list, not an object"),
        ("NaN", "a float, not an object"),
        ("[" * 100_000, "nested too deep"),
        ('{"version": 99}', "has format 99"),
        ('{"pipeline": "P", "steps": [], "cut": []}', "it is a rehash plan"),
        ('{"unsliced_peak_bytes": 1, "predicted_seconds": 2}', "plan --json prints"),
    ],
)
def test_what_is_no_plan_says_what_it_is(text: str, says: str) -> None:
    with pytest.raises(sicompiler.StalePlan, match=says):
        Plan.from_json(text)


class Positions(nn.Module):
    """Makes a table on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add it."""
        y: torch.Tensor = x @ self.weight + torch.arange(8, device=x.device, dtype=x.dtype)
        return y


def test_a_plan_made_without_a_device_is_for_the_graph_that_is_captured_on_it() -> None:
    """The plan of a preset for CUDA is made from a graph on the CPU."""
    found = []
    for device in ("cpu", "cuda"):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, torch.device(device):
            model, x = Positions().eval(), torch.empty(2, 8)
        found.append(prepare(model, (x,), {}, device_type="cuda")[1])
    there, here = (planner.plan(planner.unsliced_bytes) for planner in found)
    assert there.fingerprint == here.fingerprint
    mixed = fingerprint(_with_one_value_elsewhere(found[0].graph.program))
    assert mixed != fingerprint(found[0].graph.program.graph_module.graph)


def _with_one_value_elsewhere(program: Program) -> Any:
    graph = copy_program(program).graph_module.graph
    node = next(n for n in graph.nodes if n.op == "call_function")
    node.meta["val"] = node.meta["val"].to("meta")
    return graph


def test_every_threshold_between_capture_and_plan_is_in_the_digest() -> None:
    names = {name.rsplit(".", 1)[0] for name in basis.thresholds()}
    for module in (
        "regions.builder",
        "compiler.analyzed_graph",
        "compiler.search",
        "planners.region_cost",
        "planners.candidates",
        "passes.rematerialize",
    ):
        assert f"sicompiler.{module}" in names
    covered = {module.__name__ for module in basis._threshold_modules()}
    between = ("axes", "facts", "passes", "planners", "regions")
    wanted = {name for name in library_modules() if name.split(".")[1:2] and name.split(".")[1] in between}
    inside = {name for name in wanted if name.count(".") > 1} - {basis.__name__, *basis._OF_STEP_REHASH}
    assert inside <= covered
