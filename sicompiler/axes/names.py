"""What the axes of a graph are, for people: frames, height, width, tokens, heads, channels, batch, text.

Every dim of an input, a weight or a constant is an axis. Factor maps say where it goes: dims are split, merged, and
turn out to be the same. On the way operators tell what it is (a convolution runs along height and width, a linear layer
mixes channels); what none of them tells follows from rank and name of the input. Nothing is decided by these names.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from sicompiler.axes.factor_map import FactorMap, Slicing
from sicompiler.axes.meanings import AND, CHANNELS, FRAMES, HEADS, MIDDLE, RESULT, TOLD, convention, joined, piece
from sicompiler.axes.table import AxisTable, Operand
from sicompiler.capture import Program, Source

Origins = Sequence[tuple[Operand, Slicing | None]]


@dataclass(eq=False, slots=True)
class Axis:
    """What dims of several tensors have in common.

    Attributes:
        label: what to call it where nothing is known of it.
        order: of two axes that turn out to be the same, the one of the lower order stands for both.
        usual: what it is by convention; empty for none.
        votes: what operators say it is.
        beside: of a video, frames or channels: the other one of the two.
        whole: the axis it is a piece of, which of the pieces it is, and the sizes of all.
        parts: the axes it was merged of.
        pieces: what it was split into, by their sizes.
        same: another axis that stands for this one.
    """

    label: str
    order: int
    usual: str = ""
    votes: Counter[str] = field(default_factory=Counter)
    beside: Axis | None = None
    whole: tuple[Axis, int, tuple[int, ...]] | None = None
    parts: tuple[Axis, ...] = ()
    pieces: dict[tuple[int, ...], tuple[Axis, ...]] = field(default_factory=dict)
    same: Axis | None = None

    @property
    def root(self) -> Axis:
        """The axis that stands for this one."""
        found = self
        while found.same is not None:
            found = found.same
        if found is not self:
            self.same = found
        return found

    def split(self, sizes: tuple[int, ...]) -> tuple[Axis, ...]:
        """Its pieces, major to minor."""
        own = self.root
        if sizes not in own.pieces:
            found = [Axis(own.label, own.order, whole=(own, index, sizes)) for index in range(len(sizes))]
            own.pieces[sizes] = tuple(found)
        return own.pieces[sizes]


Parts = tuple[tuple[Axis, int], ...]  # one dim, major to minor: axes and how much of each; () is a dim of size 1
Layout = tuple[Parts, ...]  # one tensor


class AxisNames:
    """The names of the axes of a graph.

    Args:
        program: the graph.
        table: its factor maps.
        outside: the names in the graph that this one is a slice of; None for a whole graph.
        origins: for each placeholder of a slice, the value of the whole graph behind it and the slicing of it.
    """

    def __init__(
        self, program: Program, table: AxisTable, outside: AxisNames | None = None, origins: Origins = ()
    ) -> None:
        self._facts, self._table = table.facts, table
        self._layouts: list[list[Layout]] = []
        self._meanings = Meanings()
        inputs = [p for p, b in enumerate(program.bindings) if b.source is Source.INPUT and self._facts.tensors[p]]
        order = {p: rank for rank, p in enumerate(sorted(inputs, key=lambda p: -self._facts.tensors[p][0].numel))}
        for p in range(self._facts.num_placeholders):
            if outside is not None:
                self._layouts.append([self._slice_of(outside, *origins[p], shape) for shape in self._shapes(p)])
            else:
                self._layouts.append([self._given(p, order.get(p)) for _ in self._shapes(p)])
        for p in range(self._facts.num_placeholders, len(self._facts.nodes)):
            self._layouts.append(self._results(p))

    def of(self, position: int, slicing: Slicing) -> str:
        """What the first result of a node is sliced along."""
        before, end, words, labels = 1, slicing.outer * slicing.size, list[str](), list[str]()
        for axis, size in self._layouts[position][0][slicing.dim]:
            if before < end and before * size > slicing.outer:
                words.append(self._meanings.of(axis.root))
                labels.append(axis.root.label)
            before *= size
        return joined(filter(None, words)) or AND.join(dict.fromkeys(labels)) or f"axis {slicing.dim}"

    def _shapes(self, p: int) -> list[tuple[int, ...]]:
        return [tensor.shape for tensor in self._facts.tensors[p]]

    def _new(self, p: int, shape: Sequence[int], order: int) -> Layout:
        name = self._facts.nodes[p].name
        return tuple(((Axis(f"axis {d} of {name}", order), n),) if n > 1 else () for d, n in enumerate(shape))

    def _given(self, p: int, order: int | None) -> Layout:
        """Axes of a placeholder, with what convention says of those of an input."""
        name, tensor = self._facts.nodes[p].name, self._facts.tensors[p][0]
        if order is None:
            return self._new(p, tensor.shape, self._facts.num_placeholders + p)
        usual = convention(name, len(tensor.shape), floating=tensor.dtype.is_floating_point)
        axes = [Axis(f"axis {d} of {name}", order, word) for d, word in enumerate(usual)]
        for d, other in MIDDLE.items():
            if len(axes) == 5:
                axes[d].beside = axes[other]
        return tuple(((axis, n),) if n > 1 else () for axis, n in zip(axes, tensor.shape, strict=True))

    def _slice_of(self, outside: AxisNames, value: Operand, slicing: Slicing | None, shape: Sequence[int]) -> Layout:
        """The axes of a value of the whole graph, of which one slice is seen."""
        found = list(outside._layouts[value[0]][value[1]])
        if slicing is not None:
            before, sliced, behind = _carved(found[slicing.dim], (slicing.outer, slicing.size, slicing.inner))
            length = shape[slicing.dim] // (slicing.outer * slicing.inner)
            found[slicing.dim] = before + _resized(sliced, length) + behind
        return tuple(_resized(parts, size) for parts, size in zip(found, shape, strict=True))

    def _results(self, p: int) -> list[Layout]:
        """Carry axes from the operands of a node to its results, and listen to what it says of them."""
        node, rule = self._facts.nodes[p], self._table.map_of(p)
        operands = [self._layouts[q][r] for q, r in self._table.operands[p]]
        known = {} if rule is None else _factors(rule, operands)
        found: list[Layout] = []
        for index, shape in enumerate(self._shapes(p)):
            fresh = self._new(p, shape, len(self._facts.nodes) + p)
            dims = rule.results[index] if rule is not None and index < len(rule.results) else ((),) * len(shape)
            layout = []
            for d, size in enumerate(shape):
                parts = tuple(itertools.chain.from_iterable(known.get(name, ()) for name in dims[d]))
                layout.append(_resized(parts or _at_same_place(operands, d, len(shape)) or fresh[d], size))
            found.append(tuple(layout))
        _listen(node, operands, found)
        return found


def _factors(rule: FactorMap, operands: Sequence[Layout]) -> dict[str, Parts]:
    """The axes behind every factor of the operands; those behind the same factor are the same."""
    known: dict[str, Parts] = {}
    for layout, dims in zip(operands, rule.operands, strict=False):
        for parts, names in zip(layout, dims, strict=False):
            if not parts:
                continue
            pieces = [parts] if len(names) == 1 else _carved(parts, tuple(rule.sizes[name] for name in names))
            for name, part in zip(names, pieces, strict=True):
                before = known.get(name)
                if before and part:
                    _tie(before, part)
                if part and (before is None or _order(part) < _order(before)):
                    known[name] = part
    return known


def _order(parts: Parts) -> int:
    return min(axis.root.order for axis, _ in parts)


def _at_same_place(operands: Sequence[Layout], dim: int, rank: int) -> Parts:
    """The axes in that dim of operands of the same rank: what is joined or cut along a dim stays what it is."""
    found = [layout[dim] for layout in operands if len(layout) == rank and layout[dim]]
    if len(found) < 2:
        return found[0] if found else ()
    return ((_merged([part for parts in found for part in parts]), 0),)


def _listen(node: fx.Node, operands: Sequence[Layout], results: Sequence[Layout]) -> None:
    for which, rank, dim, word in TOLD.get(node.target, ()):
        layout = results[0] if which == RESULT else operands[which]
        if len(layout) == rank and len(layout[dim]) == 1:
            layout[dim][0][0].root.votes[word] += 1


def _tie(left: Parts, right: Parts) -> None:
    """Note that two dims are the same."""
    if len(left) == len(right):
        if all(a[1] == b[1] for a, b in zip(left, right, strict=True)):
            for (a, _), (b, _) in zip(left, right, strict=True):
                _link(a.root, b.root)
    elif min(len(left), len(right)) == 1:
        single, several = (left, right) if len(left) == 1 else (right, left)
        own = single[0][0].root
        if not own.parts and all(axis.root is not own for axis, _ in several):
            own.parts = tuple(axis for axis, _ in several)


def _link(one: Axis, other: Axis) -> None:
    if one is other:
        return
    first, second = (one, other) if one.order <= other.order else (other, one)
    second.same = first
    first.votes.update(second.votes)
    first.usual = first.usual or second.usual
    first.parts = first.parts or second.parts
    wholes = first.whole, second.whole
    first.whole = first.whole or second.whole
    if wholes[0] is not None and wholes[1] is not None and wholes[0][1:] == wholes[1][1:]:
        _link(wholes[0][0].root, wholes[1][0].root)


def _merged(parts: Sequence[tuple[Axis, int]]) -> Axis:
    """An axis of its own that is made of others: of parts of one dim, or of one that became longer or shorter."""
    axes = [axis.root for axis, _ in parts]
    if len(axes) == 1 and axes[0].parts and not axes[0].votes:
        return Axis(axes[0].label, axes[0].order, parts=axes[0].parts)
    return Axis(axes[0].label, min(axis.order for axis in axes), parts=tuple(axes))


def _resized(parts: Parts, size: int) -> Parts:
    """A dim that became longer or shorter."""
    if size == 1 or not parts:
        return ()
    if math.prod(n for _, n in parts) == size:
        return parts
    return ((_merged(parts), size),)


def _carved(parts: Parts, sizes: tuple[int, ...]) -> list[Parts]:
    """A dim cut into factors of the given sizes, major to minor."""
    total = math.prod(sizes)
    if math.prod(n for _, n in parts) != total:
        parts = _resized(parts, total)
    ends = list(itertools.accumulate(sizes, lambda a, b: a * b))
    pieces = list(_cut(parts, ends)) if parts else []
    found: list[Parts] = []
    before = 1
    for end in ends:
        own: list[tuple[Axis, int]] = []
        while pieces and before < end:
            own.append(pieces.pop(0))
            before *= own[-1][1]
        found.append(tuple(own))
    return found


def _cut(parts: Parts, ends: Sequence[int]) -> Iterator[tuple[Axis, int]]:
    """The parts of a dim, split where factors end; where one ends across a part, all of them as one."""
    before, found = 1, list[tuple[Axis, int]]()
    for axis, size in parts:
        marks = [before, *(end for end in dict.fromkeys(ends) if before < end < before * size), before * size]
        steps = list(itertools.pairwise(marks))
        if any(high % low for low, high in steps):
            yield from _cut(((_merged(parts), math.prod(n for _, n in parts)),), ends)
            return
        sizes = tuple(high // low for low, high in steps)
        found += zip(axis.split(sizes), sizes, strict=True) if len(sizes) > 1 else [(axis, size)]
        before *= size
    yield from found


LONGEST_CHAIN = 20_000  # calls of Python: in a deep model an axis leads to another one for each of its layers


class Meanings:
    """What axes are, as far as anything tells; each is asked once, however many axes it is a part of.

    An axis may lead back to one that is just being asked about, which then counts as what it is by convention. So an
    answer holds for as long as none of the axes that were met on the way to it is being asked about.
    """

    def __init__(self) -> None:
        self._asking: set[Axis] = set()
        self._met: set[Axis] = set()  # on the way to the answer that is being looked for
        self._open: set[Axis] = set()  # of these, the ones that were being asked about
        self._known: dict[Axis, tuple[str, frozenset[Axis]]] = {}

    def of(self, axis: Axis) -> str:
        """What an axis is; empty where nothing tells."""
        if self._asking:
            return self._of(axis)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, LONGEST_CHAIN))
        try:
            return self._of(axis)
        finally:
            sys.setrecursionlimit(limit)

    def _of(self, axis: Axis) -> str:
        if axis in self._asking:
            self._met.add(axis)
            self._open.add(axis)
            return axis.usual
        word, met = self._known.get(axis, ("", None))
        if met is None or not self._asking.isdisjoint(met):
            outside = self._met, self._open
            self._met, self._open = {axis}, set()
            self._asking.add(axis)
            word = self._find(axis)
            self._asking.discard(axis)
            self._open.discard(axis)
            met = frozenset(self._met)
            if not self._open:
                self._known[axis] = word, met
            outside[1].update(self._open)
            self._met, self._open = outside
        self._met |= met
        return word

    def _find(self, axis: Axis) -> str:
        if axis.votes:
            return max(axis.votes, key=lambda word: axis.votes[word])
        for pieces in axis.pieces.values():
            if any(each.root.votes for each in pieces):
                word = joined(filter(None, (self.of(each.root) for each in pieces)))
                return CHANNELS if word == HEADS else word
        if axis.parts:
            found = joined(filter(None, (self.of(each.root) for each in axis.parts)))
            if found:
                return found
        if axis.usual:
            return axis.usual
        if axis.beside is not None:
            self._met.add(axis.beside.root)
            if axis.beside.root not in self._asking:
                return {CHANNELS: FRAMES, FRAMES: CHANNELS}.get(self.of(axis.beside.root), "")
            self._open.add(axis.beside.root)
        if axis.whole is not None:
            whole, index, sizes = axis.whole
            word = self.of(whole.root)
            return piece(word, index, sizes) if word else ""
        return ""
