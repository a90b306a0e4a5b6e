"""Which values share a storage, and how big each storage is.

Aliases are not guessed from operator names: fake tensors carry a storage, and a view shares its base's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
import torch.utils._pytree as pytree
from torch import fx

from sicompiler.capture import Program, Source
from sicompiler.device import device_kind, rounded
from sicompiler.facts.alike import Calls, calls_of


class Origin(StrEnum):
    """Who owns a storage."""

    WEIGHT = "weight"  # a parameter, buffer or constant of the live model
    INPUT = "input"  # the caller's tensor
    VALUE = "value"  # computed by the graph


@dataclass(frozen=True)
class TensorFact:
    """One tensor of a graph.

    Attributes:
        shape, stride, dtype: as under fake tensors.
        storage: index into `GraphFacts.storages`.
        requires_grad: whether it is a weight that requires a gradient, or a view of one: some kernels go by that, with
            gradients off too.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    requires_grad: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the elements (not of the storage)."""
        return self.numel * self.dtype.itemsize

    @cached_property
    def is_expanded(self) -> bool:
        """Whether some entries are shown several times: a copy would make real what is repeated."""
        return any(stride == 0 and size > 1 for size, stride in zip(self.shape, self.stride, strict=True))

    @cached_property
    def is_contiguous(self) -> bool:
        """Whether the tensor is dense in row-major order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @cached_property
    def is_dense(self) -> bool:
        """Whether the tensor covers one block of memory without holes or overlaps, in any order of dims."""
        expected = 1
        for stride, size in sorted((st, sz) for sz, st in zip(self.shape, self.stride, strict=True) if sz != 1):
            if stride != expected:
                return False
            expected *= size
        return True


def fact_of(tensor: torch.Tensor) -> TensorFact:
    """A tensor by itself, of which no graph knows the storage (-1)."""
    return TensorFact(tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride())), tensor.dtype, -1)


@dataclass(frozen=True)
class Storage:
    """One storage.

    Attributes:
        index: its number.
        nbytes: its size, rounded as the allocator rounds.
        origin: who owns it.
        node: name of the node that makes it.
    """

    index: int
    nbytes: int
    origin: Origin
    node: str


@dataclass(frozen=True)
class GraphFacts:
    """Storages and aliases of a graph.

    Attributes:
        nodes: placeholders first, then operators in schedule order; positions are indices into this tuple.
        num_placeholders: how many of the nodes are placeholders.
        tensors: the tensor results of each node, in order; none for a node without tensors.
        storages: every storage.
        outputs: nodes the graph returns.
        device_type: where the graph runs: a row of `sicompiler.device`.
        released: storages of inputs that were made for the graph alone: they go with their last reader.
    """

    nodes: tuple[fx.Node, ...]
    num_placeholders: int
    tensors: tuple[tuple[TensorFact, ...], ...]
    storages: tuple[Storage, ...]
    outputs: tuple[fx.Node, ...]
    device_type: str
    released: frozenset[int] = frozenset()

    @cached_property
    def position(self) -> Mapping[fx.Node, int]:
        """Where each node stands in the schedule."""
        return {node: index for index, node in enumerate(self.nodes)}

    @cached_property
    def calls(self) -> Calls:
        """The operands of every node, and which calls are alike: in their arguments, and in what lies how and where.

        Alike are tensors of equal shape, strides, dtype and requirement of a gradient, weights or not, and results
        that have a storage of their own or not.
        """
        weights = {s.index for s in self.storages if s.origin is Origin.WEIGHT}
        makers = [s.node for s in self.storages]
        layouts = [
            tuple(
                [
                    (t.shape, t.stride, t.dtype, t.requires_grad, t.storage in weights, makers[t.storage] == node.name)
                    for t in tensors
                ]
            )
            for node, tensors in zip(self.nodes, self.tensors, strict=True)
        ]
        return calls_of(self.nodes, self.num_placeholders, self.position, layouts)

    @property
    def input_bytes(self) -> int:
        """Bytes of the caller's tensors."""
        return sum(s.nbytes for s in self.storages if s.origin is Origin.INPUT)

    def makes_storage(self, position: int) -> bool:
        """Whether a node allocates something, rather than giving out views of what exists."""
        name = self.nodes[position].name
        return any(self.storages[t.storage].node == name for t in self.tensors[position])


def fake_tensors(node: fx.Node) -> list[torch.Tensor]:
    """The fake tensors a node stands for."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def graph_facts(program: Program, *, device_type: str = "cpu") -> GraphFacts:
    """Collect sizes and aliases of every value of a program.

    Args:
        program: its nodes carry fake tensors in `meta["val"]`.
        device_type: whose allocator rounds: a row of `sicompiler.device`.
    """
    sources = {node: binding.source for node, binding in zip(program.placeholders, program.bindings, strict=True)}
    operators = [n for n in program.graph_module.graph.nodes if n.op not in ("placeholder", "output")]
    nodes = (*program.placeholders, *operators)
    granule = device_kind(device_type).granule_bytes
    index_of: dict[int, int] = {}
    storages: list[Storage] = []
    tensors: list[tuple[TensorFact, ...]] = []
    trained: set[int] = set()  # storages of weights that require a gradient
    for node in nodes:
        origin = Origin.VALUE
        if node in sources:
            origin = Origin.INPUT if sources[node] is Source.INPUT else Origin.WEIGHT
        facts = []
        for fake in fake_tensors(node):
            storage = fake.untyped_storage()
            index = index_of.setdefault(storage._cdata, len(storages))
            if index == len(storages):
                nbytes = int(storage.nbytes())  # symbolic where torch.export was given a view of something bigger
                storages.append(Storage(index, rounded(nbytes, granule), origin, node.name))
            if origin is Origin.WEIGHT and fake.requires_grad:
                trained.add(index)
            shape, stride = tuple(map(int, fake.shape)), tuple(map(int, fake.stride()))
            facts.append(TensorFact(shape, stride, fake.dtype, index, index in trained))
        tensors.append(tuple(facts))
    return GraphFacts(
        nodes, len(sources), tuple(tensors), tuple(storages), _outputs(program.graph_module.graph), device_type
    )


def _outputs(graph: fx.Graph) -> tuple[fx.Node, ...]:
    found: list[fx.Node] = []
    fx.node.map_arg(graph.output_node().args, lambda n: found.append(n))
    return tuple(found)


def unique_storages(facts: GraphFacts, positions: Iterable[int]) -> set[int]:
    """Storages behind the values of some nodes."""
    return {t.storage for p in positions for t in facts.tensors[p]}
