"""The tape of a trace: every operator that `torch.export` sees while a model's own code runs, in order.

What the code then asks of a tensor (`if torch.all(x == 0)`, `mask.sum().item()`, how many entries of a mask are true)
has no answer under fake tensors. From the tape the operators are cut out that lead to the tensor that is asked about,
back to inputs and weights: a small program, which gives the answer for the tensors of a call (`capture.decisions`).

The tape is a dispatch mode below autograd and autocast: it sees the operators that a kernel runs for, casts included.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

Answer = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]

NO_ANSWER = object()
LITERALS = {aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.lift.default}
MAX_ORIGIN = 16  # operators on the way to a tensor, of which is told whether it is like another one
_DRAWS = torch.Tag.nondeterministic_seeded
_NOTHING_NEW = {torch.ops.prim.device.default}


class UnknownOrigin(Exception):
    """A value that a decision reads comes from where the tape does not reach."""


@dataclass(frozen=True)
class TapedOperator:
    """One operator that ran.

    Attributes:
        target: the operator.
        args, kwargs: what it was called with.
        result: what it gave.
        reads: tensors among its operands.
        writes: storages that it wrote into.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    reads: tuple[torch.Tensor, ...]
    writes: frozenset[int]


@dataclass(frozen=True)
class Slice:
    """The operators that lead to some values.

    Attributes:
        graph: ends in the values; may write in place, as the model's code does.
        leaves: what its placeholders stand for: tensors of the trace that no operator made, in order.
    """

    graph: fx.Graph
    leaves: tuple[torch.Tensor, ...]


class Tape(TorchDispatchMode):
    """Records what a model's code runs, and may answer in the place of an operator.

    Args:
        answer: called with each operator and its operands before it runs; gives `NO_ANSWER`, or the result.
    """

    supports_higher_order_operators = True

    def __init__(self, answer: Answer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answer = answer
        self.entries: list[TapedOperator] = []
        self.num_without_tensors = 0  # operators that gave a number, or nothing
        self.literals: dict[int, torch.Tensor] = {}  # numbers that the code spells out, by id of what stands for them
        self._leaves: dict[int, torch.Tensor] = {}
        self._makers: dict[int, int] = {}  # by id of a tensor, which its entry keeps alive: the entry that made it
        self._writers: dict[int, list[int]] = {}  # by storage: the entries that wrote into it

    def maker(self, tensor: torch.Tensor) -> TapedOperator | None:
        """The operator that made a tensor."""
        number = self._makers.get(id(tensor))
        return None if number is None else self.entries[number]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator, or answer in its place; record it."""
        kwargs = kwargs or {}
        result = self._answer(func, args, kwargs)
        if result is NO_ANSWER:
            result = func(*args, **kwargs)
        if func not in _NOTHING_NEW:
            self.record(func, args, kwargs, result)
        return result

    def record(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Write down what one operator gave."""
        made = tensors_in(result)
        if not made:
            self.num_without_tensors += 1
            return
        if func in LITERALS:
            self._leaves[id(result)] = result
            self.literals[id(result)] = self.literals[id(args[0])] = args[0]
            return
        reads = tuple(tensors_in((args, kwargs)))
        for tensor in reads:
            if id(tensor) not in self._makers:
                self._leaves[id(tensor)] = tensor
        number, writes = len(self.entries), written_into(func, args, kwargs)
        for tensor in made:
            if id(tensor) not in self._leaves:
                self._makers.setdefault(id(tensor), number)
        for storage in writes:
            self._writers.setdefault(storage, []).append(number)
        self.entries.append(TapedOperator(func, args, kwargs, result, reads, writes))

    def origin(self, tensor: torch.Tensor) -> Hashable | None:
        """How a tensor was computed: two of one origin have equal entries; None where that can't be told."""
        return self._origin(tensor, {}, MAX_ORIGIN)

    def _origin(self, tensor: torch.Tensor, known: dict[int, Hashable], depth: int) -> Hashable | None:
        if id(tensor) in known:
            return known[id(tensor)]
        if not depth or self.writes_into(tensor):
            return None
        number = self._makers.get(id(tensor))
        if number is None:
            return ("leaf", id(tensor))
        entry = self.entries[number]
        if not isinstance(entry.target, OpOverload) or _DRAWS in entry.target.tags or not entry.reads:
            return None
        operands = [self._origin(read, known, depth - 1) for read in entry.reads]
        if None in operands:
            return None
        leaves, form = pytree.tree_flatten((entry.args, dict(entry.kwargs)))
        rest = [repr(leaf) for leaf in leaves if not isinstance(leaf, torch.Tensor)]
        place = next(i for i, made in enumerate(tensors_in(entry.result)) if made is tensor)
        known[id(tensor)] = found = (entry.target, tuple(operands), tuple(rest), repr(form), place)
        return found

    def writes_into(self, tensor: torch.Tensor) -> int:
        """How often the memory of a tensor was written into so far."""
        return len(self._writers.get(storage_of(tensor), ()))

    def slice(self, values: Sequence[torch.Tensor]) -> Slice:
        """Cut out the operators that lead to some tensors as they are now.

        Raises:
            UnknownOrigin: one of them has a body of its own, or sizes that depend on data.
        """
        chosen, leaves = self._needed(values)
        graph, nodes = fx.Graph(), dict[int, fx.Node]()
        for position, leaf in enumerate(leaves):
            nodes[id(leaf)] = graph.placeholder(f"leaf_{position}")
            nodes[id(leaf)].meta["val"] = leaf
        for entry in chosen:
            _copy(graph, entry, nodes)
        graph.output(tuple(nodes[id(value)] for value in values))
        return Slice(graph, leaves)

    def _needed(self, values: Sequence[torch.Tensor]) -> tuple[list[TapedOperator], tuple[torch.Tensor, ...]]:
        """The operators that values need, whatever wrote into memory that they read included; where they begin."""
        chosen, leaves, seen, waiting = set[int](), dict[int, torch.Tensor](), set[int](), [*values]
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            maker = self._makers.get(id(tensor))
            if maker is None:
                leaves[id(tensor)] = tensor
            entries = {*self._writers.get(storage_of(tensor), ()), *(() if maker is None else (maker,))} - chosen
            chosen |= entries
            waiting += [read for number in entries for read in self.entries[number].reads]
        return [self.entries[number] for number in sorted(chosen)], tuple(leaves.values())


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor: torch.Tensor) -> int:
    """Whose memory a tensor shows."""
    return int(tensor.untyped_storage()._cdata)


def written_into(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> frozenset[int]:
    """The storages that a call of an operator writes into."""
    if not isinstance(func, OpOverload) or not func._schema.is_mutable:
        return frozenset()
    given = dict(enumerate(args))
    written = [
        given.get(position, kwargs.get(argument.name))
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return frozenset(map(storage_of, tensors_in(written)))


def _copy(graph: fx.Graph, entry: TapedOperator, nodes: dict[int, fx.Node]) -> None:
    """Append one operator to a graph."""
    if not isinstance(entry.target, OpOverload):
        raise UnknownOrigin(f"it is computed by {entry.target}, which has a body of its own")

    def node_of(leaf: Any) -> Any:
        if isinstance(leaf, (torch.SymInt, torch.SymBool, torch.SymFloat)):
            raise UnknownOrigin("it is computed from sizes that depend on data")
        return nodes[id(leaf)] if isinstance(leaf, torch.Tensor) else leaf

    args, kwargs = pytree.tree_map(node_of, (entry.args, dict(entry.kwargs)))
    made = graph.call_function(entry.target, args, kwargs)
    made.meta["val"] = entry.result
    if isinstance(entry.result, torch.Tensor):
        nodes[id(entry.result)] = made
        return
    for position, result in enumerate(entry.result):
        if isinstance(result, torch.Tensor):
            nodes[id(result)] = graph.call_function(operator.getitem, (made, position))
            nodes[id(result)].meta["val"] = result
