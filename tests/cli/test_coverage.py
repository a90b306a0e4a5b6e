"""No operator of any model lacks an axis rule: tiny versions by default, every preset at full size when slow."""

from __future__ import annotations

import operator
from typing import Any

import pytest

from sicompiler.axes.factor_map import FactorKind
from sicompiler.axes.registry import rules
from sicompiler.capture import capture
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.passes.manager import run_stage
from sicompiler.reports.explain import missing, rule_rows
from sicompiler.zoo import build_preset, known_presets
from tests.zoo import TINY, legal


def check(graph: AnalyzedGraph) -> None:
    assert graph.view.table.missing_rules() == {}
    assert missing(rule_rows(graph.view)) == []
    targets = {node.target for node in graph.facts.nodes[graph.facts.num_placeholders :]}
    assert targets <= {*rules(), operator.getitem}
    for p in range(graph.facts.num_placeholders, len(graph.facts.nodes)):
        rule = graph.view.table.map_of(p)
        assert rule is not None
        assert len(rule.results) == len(graph.facts.tensors[p]), graph.facts.nodes[p].format_node()


def _quick() -> list[Any]:
    """The first tiny model of each class; others have the same code."""
    first = {row.class_name: name for name, row in reversed(list(TINY.items()))}
    return [name if name in first.values() else pytest.param(name, marks=pytest.mark.slow) for name in TINY]


@pytest.mark.parametrize("name", _quick())
def test_every_operator_of_a_tiny_model_has_a_rule(name: str) -> None:
    check(legal(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", known_presets())
def test_every_operator_of_a_preset_has_a_rule_at_full_size(name: str) -> None:
    call = build_preset(name)
    program = capture(call.module, call.args, call.kwargs, method=call.method)
    graph = analyze_graph(run_stage("legal", run_stage("clean", program)), "cuda")
    check(graph)
    most = max(range(len(graph.facts.nodes)), key=lambda p: sum(t.nbytes for t in graph.facts.tensors[p]))
    rule = graph.view.table.map_of(most)
    assert rule is not None
    assert any(rule.kind(f) is FactorKind.FREE for f in rule.sizes), "the biggest value can be sliced along some axis"
