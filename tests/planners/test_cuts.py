"""Cuts: fewest bytes, and a graph entered at a cut gives what the whole graph gives, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sicompiler.capture import Program, capture, flatten_inputs, structure
from sicompiler.compiler.analyzed_graph import analyze_graph
from sicompiler.compiler.search import whole_seconds_of
from sicompiler.device import device_kind
from sicompiler.errors import BadInput
from sicompiler.passes.manager import run_stage
from sicompiler.passes.split_at_cut import full_program, skip_program
from sicompiler.planners.min_cut import FeatureCut, _between, candidate_cuts
from tests.zoo import captured


def _cuts(program: Program, most: float = 1.0) -> tuple[FeatureCut, ...]:
    graph = analyze_graph(program, "cpu")
    return candidate_cuts(graph.facts, whole_seconds_of(graph, device_kind("cpu").machine), most)


def _run(program: Program, model: nn.Module, inputs: list[Any]) -> Any:
    with torch.no_grad():
        flat = program.graph_module.forward(
            *(v.detach() if isinstance(v, Tensor) else v for v in program.arguments(model, inputs))
        )
    return torch.utils._pytree.tree_unflatten(list(flat), program.out_spec)


QUICK = ("animatediff", "wan2.1-1.3b", "ltx-video", "mochi")
SLOW = ("svd", "modelscope", "i2vgenxl", "cogvideox-2b", "hunyuanvideo")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_entering_at_a_cut_with_its_own_values_changes_no_bit(name: str) -> None:
    (model, args, kwargs), program = captured(name)
    clean = run_stage("clean", program)
    inputs, _ = flatten_inputs(args, kwargs)
    cuts = _cuts(clean)
    assert cuts, "a denoiser can be cut"
    assert any(0 < cut.share < 0.5 for cut in cuts)
    whole = torch.utils._pytree.tree_leaves(_run(clean, model, inputs))
    for cut in cuts:
        result, values = _run(full_program(clean, cut.positions), model, inputs)
        assert sum(v.nbytes for v in values) == cut.nbytes
        later = skip_program(clean, cut.positions)
        entered = torch.utils._pytree.tree_leaves(_run(later, model, [*inputs, *values]))
        for one, other, third in zip(whole, torch.utils._pytree.tree_leaves(result), entered, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)
        changed = torch.utils._pytree.tree_leaves(_run(later, model, [*inputs, *(v + 1 for v in values)]))
        assert not all(torch.equal(a, b) for a, b in zip(whole, changed, strict=True)), "the cut is read"


ROWS = 4000


class Narrow(nn.Module):
    """Deep and wide, with a waist of few channels; the conditioning goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.waist, self.out = nn.Linear(8, 64), nn.Linear(64, 2), nn.Linear(2, 8)
        self.deep = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.time = nn.Linear(1, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.into(x)
        for layer in self.deep:
            h = torch.relu(layer(h))
        found: Tensor = self.out(torch.sin(self.waist(h)) + self.time(t))
        return found


def test_the_cut_of_fewest_bytes_is_found_and_the_time_stays_live() -> None:
    model = Narrow()
    clean = run_stage("clean", capture(model, (torch.randn(ROWS, 8), torch.randn(1, 1))))
    cuts = [c for c in _cuts(clean) if c.share > 0]
    nodes = list(clean.graph_module.graph.nodes)
    waist = {nodes[p].meta["val"].shape[-1] for cut in cuts for p in cut.positions if cut.nbytes == ROWS * 2 * 4}
    assert waist == {2}
    later = skip_program(clean, min(cuts, key=lambda c: c.nbytes).positions)
    assert {b.name for b in later.bindings if "time" in b.name} == {"time.weight", "time.bias"}
    assert not any("deep" in b.name for b in later.bindings)


def test_no_smaller_cut_exists() -> None:
    """Brute force: no set of values that parts what is skipped from the output has fewer bytes."""
    model = Narrow()
    clean = run_stage("clean", capture(model, (torch.randn(ROWS, 8), torch.randn(1, 1))))
    nodes = list(clean.graph_module.graph.nodes)
    deep = {n for n in nodes if n.op == "call_function" and n.meta["val"].shape[-1] == 64}
    found = min((c for c in _cuts(clean) if c.share > 0), key=lambda c: c.nbytes)
    values = [n for n in nodes if n.op == "call_function"]
    outputs = set(clean.graph_module.graph.output_node().all_input_nodes)
    for size in (1, 2):
        for chosen in itertools.combinations(values, size):
            if not deep & _needed(clean, set(chosen)) and not outputs & set(chosen):
                assert sum(n.meta["val"].nbytes for n in chosen) >= found.nbytes


def test_only_ways_from_what_is_skipped_to_what_stays_live_are_searched() -> None:
    clean = run_stage("clean", capture(Narrow(), (torch.randn(ROWS, 8), torch.randn(1, 1))))
    facts = analyze_graph(clean, "cpu").facts
    layers = [p for p, node in enumerate(facts.nodes) if "addmm" in node.name or "linear" in node.name]
    skipped, live = set(layers[1:3]), set(layers[3:])
    assert list(_between(facts, skipped, live)) == list(range(layers[2], layers[3] + 1))


def _needed(program: Program, stop: set[torch.fx.Node]) -> set[torch.fx.Node]:
    waiting, found = [program.graph_module.graph.output_node()], set[torch.fx.Node]()
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stop:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def test_structure_does_not_know_sizes() -> None:
    def mark(rows: int) -> str:
        return structure(
            run_stage("clean", capture(Narrow(), (torch.randn(rows, 8), torch.randn(1, 1)))).graph_module.graph
        )

    assert mark(50) == mark(7)


def test_cuts_through_what_is_no_value_are_refused() -> None:
    clean = run_stage("clean", capture(Narrow(), (torch.randn(5, 8), torch.randn(1, 1))))
    with pytest.raises(BadInput, match="single tensors that operators give"):
        full_program(clean, (0,))
    with pytest.raises(BadInput, match="one value at least"):
        skip_program(clean, ())
