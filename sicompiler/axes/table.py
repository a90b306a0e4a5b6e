"""The axis table of a graph: what slicing a value does to the operator that reads or makes it."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx
from torch._ops import OpOverload

import sicompiler.axes.rules  # noqa: F401  (registers the rules)
from sicompiler.axes.factor_map import Dims, FactorKind, FactorMap, Slicing, Window
from sicompiler.axes.padding import why_not, why_not_of_user
from sicompiler.axes.registry import TensorSpec, factor_map, op_call, rules
from sicompiler.facts.storages import GraphFacts
from sicompiler.facts.users import user_row

Operand = tuple[int, int]  # position of the node that makes a value, and which of its results


@dataclass(frozen=True)
class OpSlicing:
    """How one slicing runs through one operator.

    Attributes:
        operands: the slicing each tensor operand must have; None for those needed whole.
        results: the slicing of each result; None for a result that partial results merge into.
        kind: FREE, MERGE where the results of the slices merge (statistics), or WINDOW where operands come with a halo.
        grain: entries of the factor a unit of the axis: a slice holds whole entries of the factor.
        window: for WINDOW, what the result reads of the operand.
    """

    operands: tuple[Slicing | None, ...]
    results: tuple[Slicing | None, ...]
    kind: FactorKind
    grain: int = 1
    window: Window | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Worked out once: searches look things up by an `OpSlicing` hundreds of thousands of times."""
        return hash((self.operands, self.results, self.kind, self.grain, self.window))


class AxisTable:
    """Factor maps of every node of a graph, and the slicings of operators that they allow, computed once each."""

    def __init__(self, facts: GraphFacts) -> None:
        self.facts = facts
        self.operands: tuple[tuple[Operand, ...], ...] = facts.calls.operands
        self._transfers: dict[tuple[int, bool, int, Slicing], OpSlicing | str] = {}
        self._applied: dict[tuple[int, bool, int, Slicing], OpSlicing | str] = {}  # the same, by rule
        cache: dict[Any, FactorMap | None] = {}
        self._maps = facts.calls.each(lambda position: self._map(position, cache))

    def _map(self, position: int, cache: dict[Any, FactorMap | None]) -> FactorMap | None:
        node = self.facts.nodes[position]
        if position < self.facts.num_placeholders:
            return None
        if node.target is operator.getitem:
            shape = self.facts.tensors[position][0].shape
            names = [f"d{i}" for i in range(len(shape))]
            return FactorMap.of([names], [names], dict(zip(names, shape, strict=True)))
        if not isinstance(node.target, OpOverload):
            return None
        results = tuple(TensorSpec(t.shape, t.dtype) for t in self.facts.tensors[position])
        to_spec: Any = self._spec  # map_arg is typed for arguments of nodes only
        args = _freeze(fx.node.map_arg(node.args, to_spec))
        kwargs = {k: _freeze(v) for k, v in fx.node.map_arg(node.kwargs, to_spec).items()}
        key = (node.target, args, tuple(sorted(kwargs.items())), results)
        if key not in cache:
            cache[key] = factor_map(op_call(node.target, args, kwargs, results))
        return cache[key]

    def _spec(self, node: fx.Node) -> TensorSpec:
        tensors = self.facts.tensors[self.facts.position[node]]
        return TensorSpec(tensors[0].shape, tensors[0].dtype)

    def map_of(self, position: int) -> FactorMap | None:
        """The factor map of a node; None where its operator has no rule."""
        return self._maps[position]

    def from_operand(self, position: int, operand: int, slicing: Slicing) -> OpSlicing | str:
        """What the node does when one operand comes sliced: a transfer, or the reason why it can't."""
        return self._transfer(position, False, operand, slicing)

    def from_result(self, position: int, result: int, slicing: Slicing) -> OpSlicing | str:
        """What the node needs so that one result comes sliced: a transfer, or the reason why it can't."""
        return self._transfer(position, True, result, slicing)

    def _transfer(self, position: int, from_result: bool, index: int, slicing: Slicing) -> OpSlicing | str:
        key = (position, from_result, index, slicing)
        found = self._transfers.get(key)
        if found is None:
            found = self._transfers[key] = self._apply(position, from_result, index, slicing)
        return found

    def _apply(self, position: int, from_result: bool, index: int, slicing: Slicing) -> OpSlicing | str:
        """What one slicing is through the operator at a position, by its rule: equal calls share one answer."""
        rule, node = self._maps[position], self.facts.nodes[position]
        if rule is None:
            return f"{node.target} has no axis rule"
        key = (id(rule), from_result, index, slicing)
        found = self._applied.get(key)
        if found is None:
            found = _apply(rule, from_result, index, slicing)
            if isinstance(found, OpSlicing) and found.window is not None:
                found = _why_not(node, found, found.window) or found
            self._applied[key] = found
        return found

    def coarser(self, position: int, is_result: bool, index: int, slicing: Slicing) -> int:
        """By how much the units of a slicing must grow to run through a node; 1 if that is not what is wrong.

        They have to hold whole strides of a window, or all of the minor factors of a dim: eight rows where rows were
        upsampled by eight.
        """
        rule = self._maps[position]
        tensors = () if rule is None else rule.results if is_result else rule.operands
        if rule is None or index >= len(tensors):
            return 1
        factors = tensors[index][slicing.dim]
        window = rule.windows.get(factors[0]) if len(factors) == 1 else None
        if window is not None:
            return 1 if slicing.outer > 1 else window.stride // math.gcd(window.stride, slicing.inner)
        minor = 1
        for name in reversed(factors[1:]):
            minor *= rule.sizes[name]
            factor = minor // math.gcd(minor, slicing.inner)
            if 1 < factor < slicing.size and slicing.size % factor == 0:
                grown = Slicing(slicing.dim, slicing.outer, slicing.size // factor, slicing.inner * factor)
                if isinstance(self._transfer(position, is_result, index, grown), OpSlicing):
                    return factor
        return 1

    def missing_rules(self) -> Counter[str]:
        """Operators without a rule, and how often each occurs."""
        return Counter(
            str(node.target)
            for node, rule in zip(
                self.facts.nodes[self.facts.num_placeholders :], self._maps[self.facts.num_placeholders :], strict=True
            )
            if rule is None
        )


def _why_not(node: fx.Node, cut: OpSlicing, window: Window) -> str | None:
    """Why a call can't be cut along a window, though its rule has one."""
    row = user_row(node.target)
    if row is None:
        return why_not(node.target, node.args, node.kwargs)
    operand = next(index for index, slicing in enumerate(cut.operands) if slicing is not None)
    return why_not_of_user(row, node.target, node.args, window, operand)


def _apply(rule: FactorMap, from_result: bool, index: int, slicing: Slicing) -> OpSlicing | str:
    sides = rule.results if from_result else rule.operands
    if index >= len(sides):
        return "its rule does not describe this tensor"
    dims: Dims = sides[index]
    factors = dims[slicing.dim]
    if len(factors) == 1 and rule.kind(factors[0]) is FactorKind.WINDOW:
        return _through_window(rule, from_result, factors[0], slicing)
    cut = rule.cut_of(dims, slicing)
    if cut is None:
        return f"{slicing} runs across the factors [{' '.join(factors) or '1'}] of {rule}"
    kind = rule.kind(cut.factor)
    if kind not in (FactorKind.FREE, FactorKind.MERGE):
        return f"factor {cut.factor} is {kind} in {rule}"
    operands = tuple(rule.place(d, cut) for d in rule.operands)
    results = tuple(rule.place(d, cut) for d in rule.results)
    if kind is FactorKind.FREE and any(r is None for r in results):
        return f"factor {cut.factor} is not in every result of {rule}"
    if kind is FactorKind.MERGE and not rule.is_exact(cut):
        return f"{slicing} does not give every entry of {rule} to one slice"
    return OpSlicing(operands, results, kind, cut.inner)


def _through_window(rule: FactorMap, from_result: bool, factor: str, slicing: Slicing) -> OpSlicing | str:
    """A slicing through the window of a factor that fills its dim: units stay, entries a unit divide by the stride."""
    window = rule.windows[factor]
    if slicing.outer > 1:
        return f"{slicing} lies in several parts of the window {factor} of {rule}"
    if not from_result and slicing.inner % window.stride:
        return f"{slicing} does not hold whole strides of {window}, factor {factor} of {rule}"
    inner = slicing.inner if from_result else slicing.inner // window.stride

    def place(tensors: tuple[Dims, ...], entries: int) -> tuple[Slicing | None, ...]:
        found = [next((d for d, names in enumerate(dims) if names == (factor,)), None) for dims in tensors]
        return tuple(None if d is None else Slicing(d, 1, slicing.size, entries) for d in found)

    operands, results = place(rule.operands, inner * window.stride), place(rule.results, inner)
    if sum(s is not None for s in operands) != 1 or any(s is None for s in results):
        return f"factor {factor} is not in one operand and every result of {rule}"
    return OpSlicing(operands, results, FactorKind.WINDOW, inner, window)


def _freeze(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return tuple(_freeze(item) for item in argument)
    return argument


def coverage(table: AxisTable) -> Mapping[str, tuple[int, bool]]:
    """For each operator of a graph: how often it occurs, and whether it has a rule."""
    known = rules()
    counts = Counter(node.target for node in table.facts.nodes[table.facts.num_placeholders :])
    return {
        str(target): (count, target in known or target is operator.getitem)
        for target, count in sorted(counts.items(), key=lambda row: str(row[0]))
    }
