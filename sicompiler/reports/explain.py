"""Reasons: who is alive at the peak, what sets the floor, which operators have no rule, why one is not sliced."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import coverage
from sicompiler.errors import BadInput
from sicompiler.facts.modules import module_path
from sicompiler.facts.storages import Origin
from sicompiler.regions.view import GraphView
from sicompiler.reports.regions import family, shared_path
from sicompiler.reports.steps import operator_name, types_of


@dataclass(frozen=True)
class Alive:
    """A storage that is alive at some step.

    Attributes:
        name: of the node that makes it.
        nbytes: its size.
        type: of that node's result.
        module: where it is made; "input" for the caller's tensors.
        until: the last operator that needs it; "the end" for what is returned.
    """

    name: str
    nbytes: int
    type: str
    module: str
    until: str


@dataclass(frozen=True)
class RuleRow:
    """One operator of the coverage table.

    Attributes:
        operator: its name.
        count: how often it occurs.
        has_rule: whether an axis rule is registered.
        example: the printed rule of its first occurrence; empty without one.
    """

    operator: str
    count: int
    has_rule: bool
    example: str


@dataclass(frozen=True)
class Verdict:
    """What slicing one dim of an operator's result takes.

    Attributes:
        dim: index in the shape.
        size: length of the dim.
        sliceable: whether the rule allows it.
        reason: why not; or what the operands need, where it does.
    """

    dim: int
    size: int
    sliceable: bool
    reason: str


def alive(view: GraphView, position: int, *, crossing: bool = False) -> list[Alive]:
    """Every activation that is alive while a node runs, biggest first.

    Args:
        view: the graph.
        position: of the node.
        crossing: only what is alive before the node (what a loop that starts there keeps whole).
    """
    facts, lives = view.facts, view.lives
    node_of = {node.name: node for node in facts.nodes}
    found = []
    for storage in facts.storages:
        first, last = lives.first[storage.index], lives.last[storage.index]
        if storage.origin is Origin.WEIGHT or not first <= position - crossing or not position <= last:
            continue
        node = node_of[storage.node]
        module = "input" if storage.origin is Origin.INPUT else module_path(node)
        until = facts.nodes[last].name if last < len(facts.nodes) else "the end"
        found.append(Alive(storage.node, storage.nbytes, types_of(node), module, until))
    return sorted(found, key=lambda row: (-row.nbytes, row.name))


def alike(found: Sequence[Alive]) -> list[tuple[Alive, int]]:
    """Storages that are the same in repeated blocks as one, with their number, in the order of their first."""
    kinds: dict[object, list[Alive]] = {}
    for row in found:
        key = (row.nbytes, row.type, *map(family, (row.name, row.module, row.until)))
        kinds.setdefault(key, []).append(row)
    return [(replace(same[0], module=shared_path([r.module for r in same])), len(same)) for same in kinds.values()]


def rule_rows(view: GraphView) -> list[RuleRow]:
    """The operators of a graph: how often each occurs, and the rule it has."""
    facts, table = view.facts, view.table
    examples: dict[str, str] = {}
    for p in range(facts.num_placeholders, len(facts.nodes)):
        rule = table.map_of(p)
        if rule is not None:
            examples.setdefault(str(facts.nodes[p].target), str(rule))
    return [
        RuleRow(operator.removesuffix(".default"), count, has_rule, examples.get(operator, ""))
        for operator, (count, has_rule) in coverage(table).items()
    ]


def verdicts(view: GraphView, name: str, dim: int | None = None) -> tuple[str, list[Verdict]]:
    """Whether the first result of an operator can be sliced, dim by dim.

    Args:
        view: the graph.
        name: of the node, as `sicompiler dump --stage legal` prints it.
        dim: only this one; negative counts from the end.

    Returns:
        One line about the node, and a verdict a dim.

    Raises:
        BadInput: there is no such node or dim, or it is no operator with a tensor result.
    """
    facts = view.facts
    names = [node.name for node in facts.nodes]
    if name not in names:
        near = difflib.get_close_matches(name, names[facts.num_placeholders :], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BadInput(
            f"there is no operator {name!r} in the legal graph{hint} (sicompiler dump --stage legal lists them)"
        )
    p = names.index(name)
    node = facts.nodes[p]
    if p < facts.num_placeholders or not facts.tensors[p]:
        what = "an input or a weight" if p < facts.num_placeholders else "no tensor"
        raise BadInput(f"{name} is {what}: there is nothing to slice")
    shape = facts.tensors[p][0].shape
    if dim is not None and not -len(shape) <= dim < len(shape):
        raise BadInput(f"{name} has {len(shape)} dims ({types_of(node)}), there is no dim {dim}")
    where = f" in {module_path(node)}" if module_path(node) else ""
    rule = view.table.map_of(p)
    printed = "missing" if rule is None else str(rule)
    head = f"{name}: {types_of(node)} = {operator_name(node.target)}{where}, rule {printed}"
    chosen = range(len(shape)) if dim is None else [dim % len(shape)]
    return head, [_verdict(view, p, d, shape[d]) for d in chosen]


def _verdict(view: GraphView, p: int, dim: int, size: int) -> Verdict:
    if size == 1:
        return Verdict(dim, size, False, "a single entry")
    found = view.table.from_result(p, 0, Slicing(dim, 1, size, 1))
    if isinstance(found, str):
        return Verdict(dim, size, False, found)
    names = [view.facts.nodes[q].name for q, _ in view.table.operands[p]]
    needs = [
        f"{name} along {s}" if s is not None else f"{name} whole" for name, s in zip(names, found.operands, strict=True)
    ]
    return Verdict(dim, size, True, "needs " + ", ".join(needs) if needs else "needs nothing")


def missing(rows: Sequence[RuleRow]) -> list[RuleRow]:
    """The operators without a rule."""
    return [row for row in rows if not row.has_rule]
