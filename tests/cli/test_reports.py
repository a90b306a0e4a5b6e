"""Reports: what people read, letter by letter, and the numbers behind it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sicompiler
from sicompiler.api import prepare
from sicompiler.axes.factor_map import Slicing
from sicompiler.capture import Program
from sicompiler.compiler.planner import Planner, rewrite
from sicompiler.errors import BadInput
from sicompiler.facts.lifetimes import lifetimes
from sicompiler.facts.storages import graph_facts
from sicompiler.plan import OuterLoop, Plan, RegionPlan
from sicompiler.reports import dump, summary
from sicompiler.reports.diffs import plan_diff, text_diff
from sicompiler.reports.explain import Alive, alike, alive, rule_rows, verdicts
from sicompiler.reports.page import round_ticks
from sicompiler.reports.picture import Trace, timeline_picture
from sicompiler.reports.regions import region_rows
from sicompiler.reports.report import Report
from sicompiler.reports.steps import dtype_label, listing, thinned
from tests.cli_models import Mlp, mlp, normed
from tests.conftest import Golden
from tests.zoo import prepared


@pytest.fixture(scope="module")
def stages() -> dict[str, Program]:
    """The stages of the plain block, rewritten by a plan made by hand: three slices of the frames."""
    found: dict[str, Program] = {}
    model, args, kwargs = mlp(frames=12)
    program, planner = prepare(model, args, kwargs, observer=found.__setitem__)
    found["rewritten"] = rewrite(program, _by_hand(planner))
    return found


def _by_hand(planner: Planner) -> Plan:
    names = [node.name for node in planner.graph.facts.nodes]
    plan = replace(planner.plan(planner.unsliced_bytes), outer=None, regions=(), held_bytes=0)
    start, stop = names.index("linear"), names.index("linear_1") + 1
    region = RegionPlan(start, stop, Slicing(1, 1, 12, 1), "x.1", 12, 5, 3, "linear", "linear_1", "", 4096, 0.25)
    return replace(plan, regions=(region,), timings={})


@pytest.fixture
def plan() -> Plan:
    """A plan with everything in it, not of any model."""
    regions = (
        RegionPlan(2, 5, Slicing(1, 1, 256, 1), "frames", 256, 32, 3, "linear", "linear_1", "block", 98_304, 0.5),
        RegionPlan(
            6, 9, Slicing(0, 2, 14, 1), "sample.1", 14, 1, 2, "conv2d", "add_3", "down.0.resnets.1", 2**20, 0.25
        ),
    )
    return Plan(
        model="toy",
        fingerprint="0123456789abcdef",
        torch_version="2.13.0",
        device="cuda",
        dtype="float16",
        budget_bytes=3 * 2**20,
        weights_bytes=2**20,
        unsliced_peak_bytes=5 * 2**20,
        predicted_peak_bytes=2**21 + 4096,
        floor_bytes=2**20 + 2**19,
        floor_operator="add_3 (aten.add.Tensor) in down.0.resnets.1",
        outer=OuterLoop("sample.0", 2, 1, ((0, Slicing(0, 1, 2, 1)),)),
        regions=regions,
        seconds=1.5,
        timings={"capture": 1.25, "analyse": 0.5, "plan": 0.125},
        held_bytes=4096,
    )


@pytest.mark.parametrize("stage", ["clean", "rewritten"])
def test_dumps_are_golden(stages: dict[str, Program], golden: Golden, stage: str) -> None:
    golden(f"dump_{stage}", dump.text(listing(stages[stage]), f"mlp, {stage}"))


@pytest.mark.pure
def test_a_planned_dump_is_golden(stages: dict[str, Program], golden: Golden) -> None:
    shown = listing(stages["legal"])
    bracket = dump.Bracket(0, 3, "region 0: x.1 of 12 in 3 slices of 5")
    golden("dump_planned", dump.text(shown, "mlp, planned", [bracket]))
    golden("dump_planned_dot", dump.dot(shown, "mlp, planned", [bracket]))


@pytest.mark.pure
def test_a_dot_dump_is_golden(stages: dict[str, Program], golden: Golden) -> None:
    golden("dump_rewritten_dot", dump.dot(listing(stages["rewritten"]), "mlp, rewritten"))


@pytest.mark.pure
def test_a_dump_is_python(stages: dict[str, Program]) -> None:
    for program in stages.values():
        text = dump.text(listing(program), "mlp")
        compile(text, "dump", "exec")


@pytest.mark.pure
def test_a_plan_in_text_and_json_is_golden(plan: Plan, golden: Golden) -> None:
    rows = [summary.FrontierRow(2**20, 2**20, 2.5, 3), summary.FrontierRow(2**21, 2**20 + 512, 1.0, 0)]
    golden("plan_table", summary.plain([*summary.plan_tables(plan), summary.frontier_table(rows)]))
    golden("plan_summary_json", json.dumps(summary.summary(plan), indent=2))


@pytest.mark.pure
def test_a_plan_that_does_not_fit_says_so(plan: Plan) -> None:
    assert "NO" in summary.plain(summary.plan_tables(replace(plan, budget_bytes=1)))
    assert "no sliced loops" in summary.plain(summary.plan_tables(replace(plan, regions=())))


@pytest.mark.pure
def test_peaks_of_regions_include_weights_and_what_the_outer_loop_holds(plan: Plan) -> None:
    peaks = [region["peak_bytes"] for region in summary.summary(plan)["regions"]]
    assert peaks == [98_304 + 2**20 + 4096, 2**20 + 2**20 + 4096]


@pytest.mark.pure
def test_equal_regions_of_repeated_blocks_are_one_row(plan: Plan) -> None:
    one = replace(plan.regions[0], first="linear_1", last="linear_2", module="blocks.0.ff")
    two = replace(one, start=20, stop=23, first="linear_8", last="linear_9", module="blocks.1.ff", peak_bytes=200_000)
    other = replace(two, start=30, stop=33, axis="height", module="blocks.2.ff")
    several = replace(plan, regions=(one, two, other))
    rows = region_rows(several)
    assert [(row.count, row.times, row.module) for row in rows] == [(2, "x 2", "blocks.*.ff"), (1, "", "blocks.2.ff")]
    assert rows[0].peak_bytes == several.region_peak_bytes(two)
    text = summary.plain(summary.plan_tables(several))
    assert text.count("linear_1") == 1
    assert "linear_8 .. linear_9" in text
    assert len(summary.summary(several)["regions"]) == 3


@pytest.mark.pure
def test_what_eager_python_peaks_at_stands_beside_the_unsliced_peak(plan: Plan) -> None:
    assert "untouched peak" not in summary.plain(summary.plan_tables(plan))
    assert "untouched peak  6 MiB" in summary.plain(summary.plan_tables(plan, 6 * 2**20))
    assert summary.summary(plan, 6 * 2**20)["untouched_peak_bytes"] == 6 * 2**20


@pytest.mark.pure
def test_the_floor_says_whether_it_is_with_offloading(plan: Plan) -> None:
    assert "with offloading" not in summary.floor_text(plan)
    assert "with offloading, set by" in summary.floor_text(replace(plan, spilled=(3,)))


@pytest.mark.pure
def test_storages_of_repeated_blocks_are_one_row() -> None:
    rows = [Alive(f"add_{n}", 64, "f32[16]", f"blocks.{n}.ff", f"cat_{n}") for n in range(3)]
    other = Alive("x", 64, "f32[16]", "input", "the end")
    assert [(row.name, row.module, count) for row, count in alike([*rows, other])] == [
        ("add_0", "blocks.*.ff", 3),
        ("x", "input", 1),
    ]


def test_rules_and_reasons_are_golden(golden: Golden) -> None:
    model, args, kwargs = normed(frames=12)
    _, planner = prepare(model, args, kwargs)
    view = planner.graph.view
    lines = [f"{row.operator} {row.count} {row.has_rule} {row.example}" for row in rule_rows(view)]
    for name in ("linear", "group_apply_default", "special_bessel_j0"):
        head, found = verdicts(view, name)
        lines += ["", head, *(f"  {v.dim} ({v.size}) {'yes' if v.sliceable else 'no'}: {v.reason}" for v in found)]
    golden("explain_rules", "\n".join(lines))
    with pytest.raises(BadInput, match="an input or a weight"):
        verdicts(view, "x")


def test_who_is_alive_adds_up_to_the_timeline() -> None:
    model, args, kwargs = mlp()
    _, planner = prepare(model, args, kwargs)
    graph = planner.graph
    for p in range(graph.facts.num_placeholders, len(graph.facts.nodes)):
        total = sum(row.nbytes for row in alive(graph.view, p))
        assert total == graph.line.live_bytes[p] - graph.line.workspace_bytes[p]
        crossing = sum(row.nbytes for row in alive(graph.view, p, crossing=True))
        assert crossing == graph.line.crossing_bytes[p]


@pytest.fixture(scope="module", params=["mlp", "normed", "ltx-video"])
def planned(request: pytest.FixtureRequest) -> tuple[Program, Planner]:
    functions: dict[str, Any] = {"mlp": mlp, "normed": normed}
    if request.param in functions:
        return prepare(*functions[request.param]())
    _, program, planner, _ = prepared(request.param)
    return program, planner


def test_live_bytes_of_the_legal_graph_are_the_timeline(planned: tuple[Program, Planner]) -> None:
    graph = planned[1].graph
    shown = listing(graph.program)
    first = graph.facts.num_placeholders
    assert [s.live_bytes for s in shown.steps] == graph.line.live_bytes[first:].tolist()
    assert lifetimes(graph_facts(graph.program)) == graph.view.lives


def test_live_bytes_of_a_rewritten_graph_stay_below_the_prediction(planned: tuple[Program, Planner]) -> None:
    program, planner = planned
    for budget in {planner.floor()[0], (planner.floor()[0] + planner.unsliced_bytes) // 2}:
        plan = planner.plan(budget)
        shown = listing(rewrite(program, plan))
        assert shown.peak is not None
        peak_bytes = shown.peak.live_bytes + plan.weights_bytes
        assert 0.9 * plan.predicted_peak_bytes <= peak_bytes <= plan.predicted_peak_bytes
        names = [step.name for step in shown.steps]
        assert len(set(names)) == len(names)


def test_the_report_of_a_compiled_model(tmp_path: Path) -> None:
    model = Mlp().eval()
    x = torch.randn(2, 256, 16)
    sicompiler.compile_for_budget(model, "100KiB")
    report = sicompiler.report(model)
    assert "nothing is planned yet" in str(report)
    assert "Nothing is planned yet" in report.to_html(tmp_path / "empty.html").read_text()
    model(x)
    model(x[:, :128])
    report = sicompiler.report(model)
    assert "2 input shapes are planned" in str(report)
    found = json.loads(report.to_json())
    assert [p["fits"] for p in found["plans"]] == [True, True]
    page = report.to_html(tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"(?:src|href)=|<script|https?://", page), "a page needs nothing from elsewhere"
    for region in found["plans"][0]["regions"]:
        assert f"{region['first']} .. {region['last']}" in page


@pytest.mark.pure
@pytest.mark.parametrize("top", [1500, 2**20, 75 * 2**20, 999 * 2**20, 3 * 2**30, 80 * 2**30])
def test_ticks_are_round(top: float) -> None:
    ticks = round_ticks(top)
    assert ticks[0][0] == 0
    assert top * 0.6 < ticks[-1][0] <= top
    assert 3 <= len(ticks) <= 8
    assert all(re.fullmatch(r"(0\.)?\d{1,3} [KMG]iB", label) for _, label in ticks[:2]), ticks


@pytest.mark.pure
def test_names_are_escaped_in_html(tmp_path: Path) -> None:
    page = Report("<b>model</b>", 2**30, ()).to_html(tmp_path / "page.html").read_text()
    assert "<b>" not in page


@pytest.mark.pure
def test_the_difference_of_plans(plan: Plan) -> None:
    assert plan_diff(plan, replace(plan, timings={})).same
    first, second = plan.regions
    other = replace(plan, dtype="float32", regions=(replace(first, slice_length=8), replace(second, last="mul")))
    found = plan_diff(plan, other)
    assert found.fields == {"dtype": ("float16", "float32")}
    assert [r.last for r in found.removed] == ["add_3"]
    assert [r.last for r in found.added] == ["mul"]
    assert found.changed == {"linear .. linear_1": {"slice_length": (32, 8)}}
    assert json.loads(json.dumps(found.to_json()))["changed"]["linear .. linear_1"] == {
        "slice_length": {"a": 32, "b": 8}
    }


@pytest.mark.pure
def test_the_difference_of_texts() -> None:
    assert text_diff("a\n", "a\n", ("x", "y")) == ""
    assert text_diff("a\n", "b\n", ("x", "y")).splitlines()[:2] == ["--- x", "+++ y"]


@pytest.mark.pure
def test_the_picture_is_a_png(tmp_path: Path) -> None:
    before = Trace("untouched", [(0.0, 0), (0.5, 2**24), (0.8, 2**20)], 2**20, 1.0)
    after = Trace("compiled", [(0.0, 0), (0.7, 2**22)], 2**20, 1.2)
    assert before.peak_bytes == 2**24 + 2**20
    path = timeline_picture(tmp_path / "new" / "picture.png", "title", before, [(after, 2**23)])
    assert path.read_bytes().startswith(b"\x89PNG")
    timeline_picture(path, "nothing recorded", replace(before, points=()), [])


@pytest.mark.pure
def test_labels() -> None:
    wanted = {"float16": "f16", "bfloat16": "bf16", "int64": "i64", "uint8": "u8", "bool": "bool", "complex64": "c64"}
    assert {name: dtype_label(getattr(torch, name)) for name in wanted} == wanted


@pytest.mark.pure
def test_thinning_keeps_the_peak() -> None:
    levels = [0] * 500 + [7] + [0] * 500
    points = list(thinned(levels, 10))
    assert len(points) <= 10
    assert (500, 7) in points
