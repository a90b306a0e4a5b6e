"""Bounded lengths: static shapes for values whose size depends on data, such as the tokens that a mask lets through.

`nonzero(mask)` has as many rows as the mask has true entries: a length u between 0 and n, the size of the mask. A plan
needs sizes, so every dim of c + u entries becomes one of c + n entries. The first c + u of them are those of the model;
the rest is *beyond* the end, and is kept from all results:

    nonzero(mask)             the positions of the true entries in order, then those of the others
    x[:, i]                   the same, with zeros beyond the end
    cat([a, x], d)            the same, where x is last
    attention(q, k, v)        the same, with a mask that hides the keys beyond the end: their weight is exactly 0
    pad(y, up to a size)      what lies beyond the end is overwritten by the padding

A number that is read from a tensor and only meets other tensors stays in its tensor:

    x[t.item()]               index(x, t)
    x * t.item()              mul(x, t), where the dtype is the same

Exact for every mask: nothing is assumed about how many entries are true. Operators without a rule here are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.capture.symbols import Refused, arguments_of, is_symbolic
from sicompiler.capture.tape import tensors_in

aten = torch.ops.aten

_SAME_ORDER = {
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.view.default,
}
_CHECKS = {aten._assert_scalar.default, aten.sym_constrain_range.default, aten.sym_constrain_range_for_size.default}


@dataclass(frozen=True)
class _Selection:
    """One `nonzero`: `count` (a number) of the `bound` entries are true; `order` lists their positions first."""

    bound: int
    order: fx.Node
    count: fx.Node


@dataclass(frozen=True)
class _Padded:
    """What stands for a value with a dim of `fixed` + u entries.

    Attributes:
        node: the same value with `fixed` + n entries in this dim.
        symbol: u.
        dim: which dim.
        fixed: how many entries are there whatever the data.
        fill: what lies beyond the end: "positions" that are in range, "zeros", or "anything".
    """

    node: fx.Node
    symbol: sympy.Symbol
    dim: int
    fixed: int
    fill: str


def bound_lengths(graph: fx.Graph, mode: FakeTensorMode) -> tuple[fx.Node, str] | None:
    """Give every value of a graph static sizes, in place.

    Args:
        graph: as traced; `meta["val"]` holds fake values.
        mode: the mode they belong to.

    Returns:
        None, or the first operator whose sizes stay dependent on data, and why.
    """
    origins = {node for node in graph.nodes if is_symbolic(node)}
    if not origins:
        return None
    symbolic = [node for node in graph.nodes if node in origins or not origins.isdisjoint(node.all_input_nodes)]
    bounded = _Bounded(graph, mode)
    for node in symbolic:
        try:
            bounded.visit(node)
        except Refused as error:
            return node, str(error)
    for node in reversed(symbolic):
        if not node.users and node.op == "call_function":
            graph.erase_node(node)
            origins.discard(node)
    left = [node for node in symbolic if node in origins]
    for node in left:
        if any(user.op == "output" for user in node.users):
            return node, "it is a result of the model"
    if left:
        return left[-1], "it is used as a number"
    bounded.refresh()
    return None


class _Bounded:
    def __init__(self, graph: fx.Graph, mode: FakeTensorMode) -> None:
        self.graph, self.mode = graph, mode
        self.selections: dict[sympy.Symbol, _Selection] = {}
        self.padded: dict[fx.Node, _Padded] = {}
        self.ends: dict[tuple[sympy.Symbol, int, bool], fx.Node] = {}
        self.changed: set[fx.Node] = set()

    def visit(self, node: fx.Node) -> None:
        """Make what stands for the result of a node; nodes that compute numbers are left to die."""
        if node.target in _CHECKS:
            self.check(node)
            return
        if not tensors_in(node.meta.get("val")):
            return
        rule = _RULES.get(node.target) if isinstance(node.target, OpOverload) else None
        if rule is None:
            raise Refused("there is no rule for it")
        with self.graph.inserting_before(node):
            rule(self, node)

    def call(self, node: fx.Node, target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert a call that tells the source line of `node`."""
        made = self.graph.call_function(target, args, kwargs)
        for key in ("stack_trace", "nn_module_stack"):
            if key in node.meta:
                made.meta[key] = node.meta[key]
        made.meta["val"] = self.evaluate(made)
        return made

    def evaluate(self, node: fx.Node) -> Any:
        """The fake value of a call."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        assert callable(node.target)
        with self.mode, torch.no_grad():
            return node.target(*args, **kwargs)

    def operand(self, node: Any) -> _Padded:
        """What stands for an operand; it must be one with a size that depends on data."""
        if node not in self.padded:
            raise Refused("it mixes sizes in a way that is not supported")
        return self.padded[node]

    def keep(self, node: fx.Node, made: fx.Node, fill: str) -> _Padded:
        """Let `made` stand for `node`, whose one dim of c + u entries has c + n entries now."""
        symbol, dim, fixed = self.length(node)
        shape = list(node.meta["val"].shape)
        shape[dim] = fixed + self.selections[symbol].bound
        assert list(made.meta["val"].shape) == shape, f"{node.name}: {list(made.meta['val'].shape)}, not {shape}"
        self.padded[node] = _Padded(made, symbol, dim, fixed, fill)
        return self.padded[node]

    def length(self, node: fx.Node) -> tuple[sympy.Symbol, int, int]:
        """The symbol u, dim and constant c of a tensor that has one dim of c + u entries."""
        sizes = [(d, size) for d, size in enumerate(node.meta["val"].shape) if isinstance(size, torch.SymInt)]
        if len(sizes) != 1:
            raise Refused(f"its result has {len(sizes)} dims whose size depends on data")
        ((dim, size),) = sizes
        expression = size.node.expr
        known = [symbol for symbol in expression.free_symbols if symbol in self.selections]
        fixed = expression - known[0] if len(known) == 1 else expression
        if not isinstance(fixed, sympy.Integer) or fixed < 0:
            raise Refused(f"a size of {expression} entries is not a number more than the true entries of a mask")
        return known[0], dim, int(fixed)

    def end(self, node: fx.Node, length: _Padded, *, inside: bool) -> fx.Node:
        """One bool for each entry of a padded dim: whether it is inside, or beyond the end."""
        key = (length.symbol, length.fixed, inside)
        if key not in self.ends:
            selection = self.selections[length.symbol]
            device = selection.count.meta["val"].device
            positions = self.call(node, aten.arange.default, length.fixed + selection.bound, device=device)
            count = self.call(node, aten.add.Tensor, selection.count, length.fixed)
            self.ends[key] = self.call(node, aten.lt.Tensor if inside else aten.ge.Tensor, positions, count)
        return self.ends[key]

    def fill_beyond(self, node: fx.Node, made: fx.Node, length: _Padded, value: float) -> fx.Node:
        """Overwrite what lies beyond the end."""
        beyond = self.end(node, length, inside=False)
        rank = made.meta["val"].dim()
        shape = [-1 if dim == length.dim else 1 for dim in range(rank)]
        if rank > 1:
            beyond = self.call(node, aten.view.default, beyond, shape)
        return self.call(node, aten.masked_fill.Scalar, made, beyond, value)

    def replace(self, node: fx.Node, made: fx.Node) -> None:
        """Let the readers of a node of static shape read another."""
        node.replace_all_uses_with(made)
        self.changed.add(made)

    def check(self, node: fx.Node) -> None:
        """Leave an assertion about a length to die if it holds for 0 and for n entries, and so for all between."""
        if node.target is aten._assert_scalar.default:
            claim = node.args[0]
            relation = claim.meta["val"].node.expr if isinstance(claim, fx.Node) else sympy.S.true
            symbols = [s for s in relation.free_symbols if s in self.selections]
            linear = relation in (sympy.S.true, sympy.S.false) or isinstance(
                relation, (sympy.Ge, sympy.Le, sympy.Gt, sympy.Lt)
            )
            if len(symbols) != len(relation.free_symbols) or len(symbols) > 1 or not linear:
                raise Refused(f"it asserts {relation}")
            corners = [0, self.selections[symbols[0]].bound] if symbols else [0]
            if not all(relation.subs(dict.fromkeys(symbols, corner)) == sympy.S.true for corner in corners):
                raise Refused(f"it asserts {relation}, which depends on data")

    def refresh(self) -> None:
        """Evaluate again what reads a replaced value, as far as shapes, strides or shared storages change."""
        for node in self.graph.nodes if self.changed else ():
            if node.op != "call_function" or not self.changed.intersection(node.all_input_nodes):
                continue
            before, after = tensors_in(node.meta.get("val")), self.evaluate(node)
            storages = {t.untyped_storage()._cdata for s in node.all_input_nodes for t in tensors_in(s.meta.get("val"))}
            pairs = list(zip(before, tensors_in(after), strict=True))
            assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs), node.format_node()
            if any(a.stride() != b.stride() or b.untyped_storage()._cdata in storages for a, b in pairs):
                node.meta["val"] = after
                self.changed.add(node)


def _nonzero(bounded: _Bounded, node: fx.Node) -> None:
    mask = node.args[0]
    assert isinstance(mask, fx.Node)
    if is_symbolic(mask) or mask.meta["val"].dim() != 1:
        raise Refused("only a mask of one dim and of known size is bounded")
    size = node.meta["val"].shape[0]
    false = bounded.call(node, aten.eq.Scalar, mask, 0)
    order = bounded.call(
        node, aten.argsort.stable, bounded.call(node, aten.to.dtype, false, torch.uint8), stable=True, dim=0
    )
    count = bounded.call(node, aten.sum.default, bounded.call(node, aten.ne.Scalar, mask, 0))
    symbol = size.node.expr  # of several masks with the same entries, each is selected by its own
    bounded.ends = {key: end for key, end in bounded.ends.items() if key[0] != symbol}
    bounded.selections[symbol] = _Selection(int(mask.meta["val"].shape[0]), order, count)
    bounded.keep(node, bounded.call(node, aten.unsqueeze.default, order, 1), "positions")


def _same_order(bounded: _Bounded, node: fx.Node) -> None:
    source = bounded.operand(node.args[0])
    symbol, dim, fixed = bounded.length(node)
    old, new = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    if (symbol, fixed) != (source.symbol, source.fixed) or math.prod(old[: source.dim]) != math.prod(new[:dim]):
        raise Refused("it moves entries from one dim to another")
    bound = source.fixed + bounded.selections[symbol].bound

    def static(argument: Any) -> Any:
        return bound if isinstance(argument, fx.Node) else argument

    rest = [[static(a) for a in arg] if isinstance(arg, (list, tuple)) else static(arg) for arg in node.args[1:]]
    assert isinstance(node.target, OpOverload)
    bounded.keep(node, bounded.call(node, node.target, source.node, *rest, **node.kwargs), source.fill)


def _index(bounded: _Bounded, node: fx.Node) -> None:
    table, indices = arguments_of(node).values()
    places = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if is_symbolic(table) or len(places) != 1:
        raise Refused("only one dim of a tensor of known size is indexed by positions")
    ((dim, index),) = places
    positions = bounded.operand(index)
    bound, size = bounded.selections[positions.symbol].bound, table.meta["val"].shape[dim]
    if positions.fill != "positions" or positions.node.meta["val"].dim() != 1:
        raise Refused("its indices are not the positions of true entries")
    if size < bound:
        raise Refused(f"a mask of {bound} entries is longer than dim {dim}, of {size} entries")
    made = bounded.call(node, aten.index.Tensor, table, [*indices[:dim], positions.node, *indices[dim + 1 :]])
    length = bounded.keep(node, made, "anything")
    bounded.keep(node, bounded.fill_beyond(node, made, length, 0), "zeros")


def _cat(bounded: _Bounded, node: fx.Node) -> None:
    tensors = arguments_of(node)["tensors"]
    last = bounded.padded.get(tensors[-1])
    symbol, dim, _ = bounded.length(node)
    if last is None or any(map(is_symbolic, tensors[:-1])) or (symbol, dim) != (last.symbol, last.dim):
        raise Refused("only the last piece may have a size that depends on data, in the dim it is joined along")
    bounded.keep(node, bounded.call(node, aten.cat.default, [*tensors[:-1], last.node], dim), last.fill)


def _attention(bounded: _Bounded, node: fx.Node) -> None:
    options = arguments_of(node)
    if options["attn_mask"] is not None or options["dropout_p"] or options["is_causal"]:
        raise Refused("attention with a mask of its own, causal or with dropout is not supported")
    rank = node.meta["val"].dim()
    q, k, v = (bounded.padded.get(options[name]) for name in ("query", "key", "value"))
    if any(length is not None and length.dim != rank - 2 for length in (q, k, v)):
        raise Refused("only queries and keys may have a length that depends on data")
    if k is not None or v is not None:
        if k is None or v is None or (k.symbol, k.fixed) != (v.symbol, v.fixed) or k.fixed == 0:
            raise Refused("keys and values need a common length that is never 0")
        if k.fill != "zeros" or v.fill != "zeros":  # a weight of 0 does not hide what is not a number
            raise Refused("keys and values must be 0 beyond the end")
        inside = bounded.end(node, k, inside=True)
        options["attn_mask"] = bounded.call(node, aten.view.default, inside, [*[1] * (rank - 1), -1])
    for name, length in (("query", q), ("key", k), ("value", v)):
        options[name] = options[name] if length is None else length.node
    operands = [options[name] for name in ("query", "key", "value", "attn_mask")]
    rest = {name: options[name] for name in ("scale", "enable_gqa")}
    made = bounded.call(node, aten.scaled_dot_product_attention.default, *operands, **rest)
    if q is None:
        bounded.replace(node, made)
    else:
        bounded.keep(node, made, "anything")


def _pad(bounded: _Bounded, node: fx.Node) -> None:
    source, pads, how, value = arguments_of(node).values()
    mine = bounded.operand(source)
    target = node.meta["val"].shape
    bound = mine.fixed + bounded.selections[mine.symbol].bound
    place = 2 * (len(target) - 1 - mine.dim)  # pads are told from the last dim on
    if how != "constant" or place >= len(pads) or pads[place] != 0:
        raise Refused("only padding by a constant at the end of the length is supported")
    if is_symbolic(node) or target[mine.dim] < bound:
        raise Refused(f"it does not pad to a known size that holds all {bound} entries")
    made = bounded.fill_beyond(node, mine.node, mine, 0 if value is None else value)
    rest = [*pads[: place + 1], int(target[mine.dim]) - bound, *pads[place + 2 :]]
    if any(rest):
        made = bounded.call(node, aten.pad.default, made, rest, how, value)
    bounded.replace(node, made)


def _number(index: Any) -> fx.Node:
    """The tensor whose one number is used."""
    if not isinstance(index, fx.Node) or index.target not in _READS or is_symbolic(index.all_input_nodes[0]):
        raise Refused("there is no rule for it: it computes with a number that depends on data")
    return index.all_input_nodes[0]


def _select(bounded: _Bounded, node: fx.Node) -> None:
    source, dim, index = arguments_of(node).values()
    if is_symbolic(source):
        raise Refused("only a tensor of known size is looked up by a number")
    tensor = _number(index)
    position = bounded.call(node, aten.view.default, tensor, [])  # negative ones count from the end here too
    rank = source.meta["val"].dim()
    indices = [*[None] * (dim % rank), position]
    bounded.replace(node, bounded.call(node, aten.index.Tensor, source, indices))


def _with_a_number(bounded: _Bounded, node: fx.Node) -> None:
    assert isinstance(node.target, OpOverload)
    source, number, *rest = node.args
    if not isinstance(source, fx.Node) or is_symbolic(source) or rest or node.kwargs:
        raise Refused("there is no rule for it: only one tensor of known size meets a number that is read from another")
    tensor = _number(number)
    value = bounded.call(node, aten.view.default, tensor, [])
    made = bounded.call(node, _OF_TENSORS[node.target], source, value)
    if made.meta["val"].dtype != node.meta["val"].dtype or not source.meta["val"].dim():
        raise Refused("a tensor in the place of the number would change the dtype")
    bounded.replace(node, made)


_READS = {aten.item.default, aten._local_scalar_dense.default}
_OF_TENSORS = {target: target for target in (aten.add.Tensor, aten.div.Tensor, aten.mul.Tensor, aten.sub.Tensor)} | {
    aten.ge.Scalar: aten.ge.Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
}
_RULES: dict[OpOverload, Callable[[_Bounded, fx.Node], None]] = (
    {
        aten.cat.default: _cat,
        aten.index.Tensor: _index,
        aten.nonzero.default: _nonzero,
        aten.pad.default: _pad,
        aten.scaled_dot_product_attention.default: _attention,
        aten.select.int: _select,
    }
    | dict.fromkeys(_SAME_ORDER, _same_order)
    | dict.fromkeys(_OF_TENSORS, _with_a_number)
)
