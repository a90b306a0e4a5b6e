"""Matrix products: batch, rows and columns are free, the contracted dim adds up.

An operand that lacks the REDUCE factor (a bias, the `self` of addmm) is added once: it goes with the first
partial result only.
"""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import aligned, described, letters, opaque

aten = torch.ops.aten


@rule(aten.addmm.default)
def addmm(call: OpCall) -> FactorMap:
    """`([n], [m, k], [k, n]) -> ([m, n]) reduce={k}`."""
    added = aligned(["m", "n"], call.operands[0])
    return described(call, [added, ["m", "k"], ["k", "n"]], [["m", "n"]], reduce="k")


@rule(aten.baddbmm.default)
def baddbmm(call: OpCall) -> FactorMap:
    """`([b, m, n], [b, m, k], [b, k, n]) -> ([b, m, n]) reduce={k}`."""
    result = ["b", "m", "n"]
    added = aligned(result, call.operands[0])
    return described(call, [added, ["b", "m", "k"], ["b", "k", "n"]], [result], reduce="k")


@rule(aten.bmm.default)
def bmm(call: OpCall) -> FactorMap:
    """`([b, m, k], [b, k, n]) -> ([b, m, n]) reduce={k}`."""
    return described(call, [["b", "m", "k"], ["b", "k", "n"]], [["b", "m", "n"]], reduce="k")


@rule(aten.dot.default)
def dot(call: OpCall) -> FactorMap:
    """`([k], [k]) -> ([]) reduce={k}`."""
    return described(call, [["k"], ["k"]], [[]], reduce="k")


@rule(aten.einsum.default)
def einsum(call: OpCall) -> FactorMap:
    """The letters of the equation are the factors; those that are summed over are REDUCE.

    Refuses an ellipsis and a letter that occurs twice in one operand (a diagonal). A summed letter that some operand
    lacks is whole: that operand multiplies, and partial results take an operand without the factor as added.
    """
    equation = call["equation"].replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if "." in equation or any(len(set(term)) != len(term) for term in terms):
        return opaque(call)
    if not arrow:
        output = "".join(sorted(letter for letter in set(inputs) - {","} if inputs.count(letter) == 1))
    summed = sorted(set(inputs) - {","} - set(output))
    reduce = [letter for letter in summed if all(letter in term for term in terms)]
    whole = [letter for letter in summed if letter not in reduce]
    return described(call, [list(term) for term in terms], [list(output)], reduce=reduce, whole=whole)


@rule(aten.linear.default)
def linear(call: OpCall) -> FactorMap:
    """`([n, i], [o, i], [o]) -> ([n, o]) reduce={i}`."""
    if len(call["weight"].shape) != 2:
        return opaque(call)
    leading = len(call["input"].shape) - 1
    rows = ["n"] if leading == 1 else letters(leading, avoid="io")
    bias = [["o"]] if call["bias"] is not None else []
    return described(call, [[*rows, "i"], ["o", "i"], *bias], [[*rows, "o"]], reduce="i")


@rule(aten.matmul.default)
def matmul(call: OpCall) -> FactorMap:
    """`([a, m, k], [a, k, n]) -> ([a, m, n]) reduce={k}`; batch dims broadcast, a vector has k alone."""
    left, right = (len(spec.shape) for spec in call.operands)
    batch = letters(max(left, right, 2) - 2, avoid="mkn")
    rows = ["k"] if left == 1 else [*batch[len(batch) - (left - 2) :], "m", "k"]
    columns = ["k"] if right == 1 else [*batch[len(batch) - (right - 2) :], "k", "n"]
    result = [*batch, *(["m"] if left > 1 else []), *(["n"] if right > 1 else [])]
    return described(call, [rows, columns], [result], reduce="k")


@rule(aten.mm.default)
def mm(call: OpCall) -> FactorMap:
    """`([m, k], [k, n]) -> ([m, n]) reduce={k}`."""
    return described(call, [["m", "k"], ["k", "n"]], [["m", "n"]], reduce="k")


@rule(aten.mv.default)
def mv(call: OpCall) -> FactorMap:
    """`([m, k], [k]) -> ([m]) reduce={k}`."""
    return described(call, [["m", "k"], ["k"]], [["m"]], reduce="k")


@rule(aten.outer.default)
def outer(call: OpCall) -> FactorMap:
    """`([m], [n]) -> ([m, n])`."""
    return described(call, [["m"], ["n"]], [["m", "n"]])
