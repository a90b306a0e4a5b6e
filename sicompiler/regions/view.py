"""Tables over one graph that all growing regions read: shapes, storages, readers, live ranges."""

from __future__ import annotations

import copy
import operator
from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping

import torch
from torch import fx
from torch._ops import OpOverload

import sicompiler.ops  # noqa: F401  (registers the operators named below)
from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import AxisTable, Operand, OpSlicing
from sicompiler.facts.lifetimes import Lifetimes
from sicompiler.facts.storages import GraphFacts, Origin, TensorFact

# Operators that read a strided view as quickly as a dense copy; the others would copy it themselves, unseen.
READS_STRIDED = frozenset(
    {
        torch.ops.aten.cat.default,
        torch.ops.aten.scaled_dot_product_attention.default,
        torch.ops.sicompiler.group_apply.default,
        torch.ops.sicompiler.group_stats.default,
    }
)

# Operators whose kernel clones all the memory behind their first operand, however little of it they were given.
CLONES_STORAGE = frozenset(
    {
        torch.ops.aten.as_strided_scatter.default,
        torch.ops.aten.copy.default,
        torch.ops.aten.diagonal_scatter.default,
        torch.ops.aten.select_scatter.default,
        torch.ops.aten.slice_scatter.default,
    }
)


def narrows_well(tensor: TensorFact, slicing: Slicing) -> bool:
    """Whether one slice of a tensor can be read through a view by any operator.

    That is so where the view is dense, and where the tensor is expanded: a copy would make real what is repeated.
    """
    if slicing.outer > 1:
        return False
    if tensor.is_expanded:
        return True
    ours = tensor.stride[slicing.dim]
    others = (
        st
        for dim, (sz, st) in enumerate(zip(tensor.shape, tensor.stride, strict=True))
        if dim != slicing.dim and sz > 1
    )
    return tensor.is_dense and all(stride <= ours for stride in others)


def _may_be_view(node: fx.Node) -> bool:
    """Whether a result of an operator may share the memory of its first operand."""
    if isinstance(node.target, OpOverload):
        return any(result.alias_info is not None for result in node.target._schema.returns)
    return node.target is operator.getitem


class GraphView:
    """What growing regions look up again and again about one graph, computed once.

    Attributes:
        offloaded: storages that are offloaded: values that outlive the region they are made in, and streamed weights.
    """

    offloaded: frozenset[int] = frozenset()

    def __init__(self, facts: GraphFacts, lives: Lifetimes, table: AxisTable) -> None:
        self.facts, self.lives, self.table = facts, lives, table
        self.made: list[tuple[int, ...]] = [
            tuple({t.storage for t in facts.tensors[p] if facts.storages[t.storage].node == node.name})
            for p, node in enumerate(facts.nodes)
        ]
        self.nbytes: list[int] = [storage.nbytes for storage in facts.storages]
        self.storages_read: list[list[int]] = [
            [facts.tensors[q][r].storage for q, r in operands if r < len(facts.tensors[q])]
            for operands in table.operands
        ]
        self.storage_readers: list[list[int]] = [[] for _ in facts.storages]
        for p in range(facts.num_placeholders, len(facts.nodes)):
            for storage in set(self.storages_read[p]):
                self.storage_readers[storage].append(p)
        self.born = lives.first
        self.reads_strided = [
            node.target in READS_STRIDED
            or (isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags)
            for node in facts.nodes
        ]
        self.may_be_view = [_may_be_view(node) for node in facts.nodes]
        self.clones_storage = self._clones_storage()

    def _clones_storage(self) -> list[bool]:
        """For each node, whether it clones all the memory behind its operand, by itself or by what reads its view."""
        cloned = [node.target in CLONES_STORAGE for node in self.facts.nodes]
        for p in reversed(range(len(cloned))):
            cloned[p] = cloned[p] or (self.may_be_view[p] and any(cloned[reader] for reader in self.lives.readers[p]))
        return cloned

    def offloading(self, offloaded: frozenset[int]) -> GraphView:
        """The graph with other storages offloaded."""
        other = copy.copy(self)
        other.offloaded = offloaded
        return other

    def bytes_of(self, storages: Iterable[int]) -> int:
        """Bytes of some storages together."""
        return sum(self.facts.storages[s].nbytes for s in storages)

    def fetched(
        self, position: int, start: int, transfer: OpSlicing | None = None, inside: Container[int] = ()
    ) -> set[int]:
        """Offloaded storages, made before a step starts, that one of its operators needs whole on the device.

        Args:
            position: of the operator.
            start: position of the first operator of the step.
            transfer: how it is sliced; None where it runs unsliced, and so needs all that it reads.
            inside: positions of the operators that are sliced with it.
        """
        if not self.offloaded or (transfer is None and not self.made[position]):
            return set()
        whole = self.table.operands[position]
        if transfer is not None:
            pairs = zip(whole, transfer.operands, strict=True)
            whole = tuple(value for value, slicing in pairs if slicing is None and value[0] not in inside)
        found = {self.tensor(value).storage for value in whole} & self.offloaded
        return {storage for storage in found if self.born[storage] < start}

    def fetched_by_loop(self, start: int, hoisted: Iterable[int], sliced: Mapping[int, OpSlicing]) -> set[int]:
        """Offloaded storages that a loop needs whole on the device: for the operators before it and for its body."""
        found = (self.fetched(p, start) for p in hoisted)
        return set().union(*found, *(self.fetched(p, start, transfer, sliced) for p, transfer in sliced.items()))

    def tensor(self, value: Operand) -> TensorFact:
        """The facts of one result of a node."""
        return self.facts.tensors[value[0]][value[1]]

    def fits_by_copy(self, position: int, value: Operand, slicing: Slicing) -> bool:
        """Whether an operator that needs less than a slice holds gets a copy of it, rather than a view."""
        if slicing.outer > 1:
            return True
        return not self.reads_strided[position] and not narrows_well(self.tensor(value), slicing)

    def last_read_before(self, storage: int, stop: int) -> int:
        """Position of the last operator before `stop` that reads a storage; -1 if there is none."""
        found = self.storage_readers[storage]
        index = bisect_left(found, stop)
        return found[index - 1] if index else -1

    def dies_before(self, storage: int, stop: int) -> bool:
        """Whether nothing at or after `stop` needs a storage that the graph owns."""
        return self.facts.storages[storage].origin is Origin.VALUE and self.lives.last[storage] < stop
