"""Decisions: what a model asks of the values of tensors while it runs, as small programs with an outcome.

    if torch.all(image_embeds == 0):        which branch
    text = text[:, : mask.sum()]            how long
    for n in mask.sum(dim=1).tolist():      how often

`torch.export` has no values. A decision is the program that leads from inputs and weights to the tensor that is asked:
it is run for the call that is traced, the trace goes on with the outcome, and the outcome is a guard. At every call the
program is run again, and another outcome belongs to another trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sicompiler.capture.program import Binding, Program, Source
from sicompiler.capture.selections import spell_out_sizes
from sicompiler.capture.tape import Slice, Tape, UnknownOrigin

Outcome = tuple[Hashable, ...]
Finish = Callable[..., torch.Tensor]  # takes tensors, gives one
ASKED = "asked"  # the one output of a decision


@dataclass(frozen=True)
class Decision:
    """A program whose result a model decides by.

    Attributes:
        program: takes weights and the inputs of the whole model; gives one tensor, whose entries are the outcome.
        where: the line that asks.
        is_fixed: whether nothing of the model or the call is read: numbers that the code spells out.
    """

    program: Program
    where: str
    is_fixed: bool


@dataclass(frozen=True)
class Decided:
    """A decision and what came out for the call that was traced: the trace holds for this outcome alone."""

    decision: Decision
    outcome: Outcome


Decide = Callable[[Decision, Sequence[Any]], torch.Tensor]  # runs the program of a decision on its arguments


def decide_at_once(decision: Decision, arguments: Sequence[Any]) -> torch.Tensor:
    """Run the program of a decision as it is."""
    with torch.no_grad():
        result: torch.Tensor = decision.program.graph_module.forward(*arguments)[0]
        return result


def numbers_in(result: torch.Tensor) -> list[Any]:
    """The entries of a tensor, in order."""
    numbers: list[Any] = result.reshape(-1).tolist()
    return numbers


def outcome_of(numbers: Sequence[Any]) -> Outcome:
    """Numbers as a key: a float by all of its bits, as 0.0 and -0.0 may lead to different places."""
    return tuple(x.hex() if isinstance(x, float) else x for x in numbers)


class DecisionMaker:
    """Makes decisions of slices of a tape.

    Args:
        tape: of a trace.
        tensors: weights of the trace, by name.
        inputs: of the trace, flat.
    """

    def __init__(self, tape: Tape, tensors: Mapping[str, torch.Tensor], inputs: Sequence[Any]) -> None:
        self._tape, self._inputs = tape, tuple(inputs)
        self._names = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
        self._trace_mode = detect_fake_mode([*tensors.values(), *inputs])

    @functools.cached_property
    def _mode(self) -> FakeTensorMode:
        """A fake mode for the decisions alone: nothing done in it is seen by the trace. Most traces decide nothing."""
        return FakeTensorMode()

    def make(self, tensors: Sequence[torch.Tensor], finish: Finish, where: str) -> Decision:
        """The decision by something computed from tensors of a trace.

        Args:
            tensors: of the trace.
            finish: what is computed from them.
            where: the line that asks.

        Raises:
            UnknownOrigin: the tensors do not come from inputs, weights and constants alone.
        """
        cut = self._tape.slice(tensors)
        graph, leaves, constants = fx.Graph(), dict[int, fx.Node](), dict[str, torch.Tensor]()
        bindings = []
        for position, value in enumerate(self._inputs):
            node = graph.placeholder(f"input_{position}")
            node.meta["val"] = self._fake(value) if isinstance(value, torch.Tensor) else value
            leaves.setdefault(id(value), node)
            bindings.append(Binding(Source.INPUT, str(position)))
        is_fixed = True
        for position, leaf in enumerate(cut.leaves):
            is_fixed = is_fixed and id(leaf) in self._tape.literals
            if id(leaf) in leaves:
                continue
            binding = self._binding(position, leaf, constants)
            leaves[id(leaf)] = graph.placeholder(f"{binding.source}_{position}")
            leaves[id(leaf)].meta["val"] = self._fake(leaf)
            bindings.append(binding)
        nodes = {node: leaves[id(leaf)] for node, leaf in zip(_placeholders(cut.graph), cut.leaves, strict=True)}
        last = _finished(cut, [node.meta["val"] for node in nodes.values()], finish, self._mode)
        results = graph.graph_copy(last, val_map=dict(zip(_placeholders(last), nodes.values(), strict=True)))
        graph.output(results)
        module = fx.GraphModule(torch.nn.Module(), graph)
        spec = torch.utils._pytree.tree_structure(0)
        return Decision(Program(module, tuple(bindings), constants, spec, self._mode), where, is_fixed)

    def fake(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A fake tensor of the trace.

        Args:
            make: as a real one is made.
        """
        assert self._trace_mode is not None, "a trace runs in a fake mode"
        with self._trace_mode:
            return make()

    def _binding(self, position: int, leaf: torch.Tensor, constants: dict[str, torch.Tensor]) -> Binding:
        """What a tensor that no operator made stands for."""
        if id(leaf) in self._names:
            return Binding(Source.PARAMETER, self._names[id(leaf)])
        value = self._tape.literals.get(id(leaf), leaf)
        if isinstance(value, FakeTensor):
            raise UnknownOrigin("it comes from a tensor that is neither an input nor a weight of the model")
        constants[f"constant_{position}"] = value
        return Binding(Source.CONSTANT, f"constant_{position}")

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same layout for the decisions."""
        sizes, strides = tuple(tensor.shape), tensor.stride()
        if not all(type(size) is int for size in (*sizes, *strides)):
            raise UnknownOrigin("it is computed from sizes that depend on data")
        with self._mode:
            return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device)


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return list(graph.find_nodes(op="placeholder"))


def _finished(cut: Slice, fakes: Sequence[torch.Tensor], finish: Finish, mode: FakeTensorMode) -> fx.Graph:
    """A slice with what is computed last, pure and with fake values of its own: a graph that gives one tensor."""
    module = fx.GraphModule(torch.nn.Module(), cut.graph)
    spell_out_sizes(module)

    def whole(*leaves: torch.Tensor) -> tuple[torch.Tensor]:
        return (finish(*module.forward(*leaves)),)

    with mode:
        graph: fx.Graph = make_fx(torch.func.functionalize(whole, remove="mutations"))(*fakes).graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        if node.args[0].op == "placeholder" and not node.users:  # what was written into a leaf, written back to it
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return graph
