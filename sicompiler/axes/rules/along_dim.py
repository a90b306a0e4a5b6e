"""Operators where each result depends on all of, or on the order along, some dims: those are whole."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters, wrap, wrap_all

aten = torch.ops.aten


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
@rule(aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default)
@rule(aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable)
def one_dim(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a, b]) whole={b}`."""
    names = letters(len(call.operands[0].shape))
    whole = names[wrap(call["dim"], len(names))] if names else ""
    return described(call, [names], [names] * len(call.results), whole=whole)


@rule(aten.flip.default, aten.roll.default, aten.fft_fftn.default, aten.fft_ifftn.default)
@rule(aten.fft_fftshift.default, aten.fft_ifftshift.default)
def several_dims(call: OpCall) -> FactorMap:
    """`([a, b]) -> ([a, b]) whole={b}`, for each dim named; none named means all."""
    names = letters(len(call.operands[0].shape))
    dims = call["dim"] if "dim" in call.arguments else call["dims"]
    whole = {names[d] for d in wrap_all(dims, len(names))}
    if call.arguments.get("s") is not None:
        whole = set(names)
    if call.operands[0].shape != call.results[0].shape:
        target = [f"{name}_out" for name in names]
        return described(call, [names], [target], whole=[*names, *target])
    return described(call, [names], [names], whole=sorted(whole))


@rule(aten.topk.default)
def topk(call: OpCall) -> FactorMap:
    """`([a, s]) -> ([a, k], [a, k]) whole={s, k}`."""
    rank = len(call.operands[0].shape)
    source, dim = letters(rank, avoid="sk"), wrap(call["dim"], rank)
    target = list(source)
    if rank:
        source[dim], target[dim] = "s", "k"
    return described(call, [source], [target, target], whole="sk")


@rule(aten.tril.default, aten.triu.default)
def triangle(call: OpCall) -> FactorMap:
    """`([a, b, c]) -> ([a, b, c]) whole={b, c}`: the diagonal is found by position."""
    names = letters(len(call.operands[0].shape))
    return described(call, [names], [names], whole=names[-2:])
