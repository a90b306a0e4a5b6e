"""Memory facts: sizes, aliases, lifetimes and live bytes are those of a real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import fx

from sicompiler import testing
from sicompiler.capture import flatten_inputs
from sicompiler.compiler.analyzed_graph import AnalyzedGraph
from tests.random_choices import Choose, for_choices, seeded
from tests.zoo import captured, legal


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found: dict[fx.Node, list[torch.Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
        return value


def check_facts(graph: AnalyzedGraph, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
    """Shapes, strides, dtypes and who shares memory with whom, in a real run and in the facts."""
    program, facts = graph.program, graph.facts
    recorder = Recorder(program.graph_module)
    with torch.no_grad():
        recorder.run(*program.arguments(module, flatten_inputs(args, kwargs)[0]))
    storage_of: dict[int, int] = {}
    for p, node in enumerate(facts.nodes):
        for fact, real in zip(facts.tensors[p], recorder.found[node], strict=True):
            where = f"{node.format_node()}"
            assert fact.shape == tuple(real.shape), where
            assert fact.dtype == real.dtype, where
            moved = [
                (a, b) for size, a, b in zip(fact.shape, fact.stride, real.stride(), strict=True) if size > 1 and a != b
            ]
            assert not moved or real.numel() == 0, f"{where}: strides {fact.stride}, really {real.stride()}"
            address, nbytes = real.untyped_storage()._cdata, facts.storages[fact.storage].nbytes
            assert type(nbytes) is int, f"{where}: its size is {nbytes}"
            assert nbytes == real.untyped_storage().nbytes(), where
            assert storage_of.setdefault(address, fact.storage) == fact.storage, f"{where}: really shares memory"
            if fact.storage not in storage_of.values():
                storage_of[address] = fact.storage
    reals = [t.untyped_storage()._cdata for found in recorder.found.values() for t in found]
    assert len(set(reals)) == len(storage_of)
    assert len(set(storage_of.values())) == len(storage_of), "the facts let values share memory that really do not"


def test_facts_are_those_of_a_real_run() -> None:
    def check(choose: Choose) -> None:
        module, args, kwargs = testing.draw_module(choose, seeded(choose))
        check_facts(testing.legal_graph(module, args, kwargs), module, args, kwargs)

    for_choices(check, seeds=30, deep=360)


@pytest.mark.parametrize("name", ["animatediff", "svd", "wan2.1-1.3b", "ltx-video"])
def test_facts_of_models_are_those_of_a_real_run(name: str) -> None:
    (module, args, kwargs), _ = captured(name)
    check_facts(legal(name), module, args, kwargs)
