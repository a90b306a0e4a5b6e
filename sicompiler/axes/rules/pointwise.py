"""Pointwise operators: every broadcast-aligned dim is free, dims of size 1 are invariant."""

from __future__ import annotations

import torch
from torch._ops import OpOverload

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import aligned, described, letters, opaque, wrap

aten = torch.ops.aten


def broadcast(call: OpCall) -> FactorMap:
    """The rule of all pointwise operators: `([a, b], [b]) -> ([a, b])`."""
    names = letters(max(len(spec.shape) for spec in call.results))
    return described(call, [aligned(names, s) for s in call.operands], [aligned(names, s) for s in call.results])


def pointwise(*targets: OpOverload) -> None:
    """Register overloads whose result at a position depends on the operands at that position only."""
    rule(*targets)(broadcast)


# One operand.
pointwise(aten.abs.default, aten.neg.default, aten.sign.default, aten.sgn.default, aten.positive.default)
pointwise(aten.ceil.default, aten.floor.default, aten.round.default, aten.round.decimals, aten.trunc.default)
pointwise(aten.frac.default, aten.reciprocal.default, aten.sqrt.default, aten.rsqrt.default, aten.square.default)
pointwise(aten.exp.default, aten.exp2.default, aten.expm1.default, aten.log.default, aten.log1p.default)
pointwise(aten.log2.default, aten.log10.default, aten.erf.default, aten.erfc.default, aten.erfinv.default)
pointwise(aten.sin.default, aten.cos.default, aten.tan.default, aten.asin.default, aten.acos.default)
pointwise(aten.atan.default, aten.sinh.default, aten.cosh.default, aten.tanh.default, aten.sinc.default)
pointwise(aten.isfinite.default, aten.isinf.default, aten.isnan.default, aten.nan_to_num.default)
pointwise(aten.logical_not.default, aten.bitwise_not.default, aten.deg2rad.default, aten.rad2deg.default)
pointwise(aten.real.default, aten.imag.default, aten.angle.default, aten.conj.default, aten._conj.default)
pointwise(aten.resolve_conj.default, aten.resolve_neg.default)

# Activations.
pointwise(aten.silu.default, aten.gelu.default, aten.relu.default, aten.relu6.default, aten.elu.default)
pointwise(aten.celu.default, aten.selu.default, aten.mish.default, aten.sigmoid.default, aten.log_sigmoid.default)
pointwise(aten.softplus.default, aten.hardtanh.default, aten.hardsigmoid.default)
pointwise(aten.hardswish.default, aten.leaky_relu.default, aten.threshold.default, aten.logit.default)
pointwise(aten.hardshrink.default, aten.softshrink.default)

# Two operands, and one operand with a number.
pointwise(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor, aten.rsub.Scalar)
pointwise(aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar, aten.subtract.Tensor)
pointwise(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode, aten.divide.Tensor)
pointwise(aten.true_divide.Tensor, aten.floor_divide.default, aten.floor_divide.Scalar)
pointwise(aten.remainder.Tensor, aten.remainder.Scalar, aten.fmod.Tensor, aten.fmod.Scalar)
pointwise(aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar, aten.float_power.Tensor_Scalar)
pointwise(aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other, aten.fmax.default)
pointwise(aten.fmin.default, aten.atan2.default, aten.hypot.default, aten.copysign.Tensor, aten.copysign.Scalar)
pointwise(aten.heaviside.default, aten.xlogy.Tensor, aten.polar.default, aten.complex.default)

# Comparisons and logic.
pointwise(aten.eq.Tensor, aten.eq.Scalar, aten.ne.Tensor, aten.ne.Scalar, aten.isclose.default)
pointwise(aten.lt.Tensor, aten.lt.Scalar, aten.le.Tensor, aten.le.Scalar)
pointwise(aten.gt.Tensor, aten.gt.Scalar, aten.ge.Tensor, aten.ge.Scalar)
pointwise(aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default)
pointwise(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_or.Tensor, aten.bitwise_or.Scalar)
pointwise(aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.__and__.Tensor, aten.__and__.Scalar)
pointwise(aten.__or__.Tensor, aten.__or__.Scalar, aten.__xor__.Tensor, aten.__xor__.Scalar)

# More operands.
pointwise(aten.where.self, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther)
pointwise(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.lerp.Scalar, aten.lerp.Tensor)
pointwise(aten.addcmul.default, aten.addcdiv.default, aten.broadcast_tensors.default)
pointwise(aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor, aten.clamp_min.default)
pointwise(aten.clamp_min.Tensor, aten.clamp_max.default, aten.clamp_max.Tensor)

# Copies and conversions. The functional `copy` and `fill` take the shape of their first operand.
pointwise(aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default)
pointwise(aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default)
pointwise(aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.copy.default)
pointwise(aten.fill.Scalar, aten.fill.Tensor)


@rule(aten.dropout.default)
def dropout(call: OpCall) -> FactorMap:
    """Pointwise in evaluation; in training the random numbers would differ from slice to slice."""
    return opaque(call) if call["train"] and call["p"] > 0 else broadcast(call)


@rule(aten.glu.default)
def glu(call: OpCall) -> FactorMap:
    """`([a, m b]) -> ([a, b]) whole={m}`: both halves of the dim are needed for each result."""
    rank = len(call.operands[0].shape)
    names, dim = letters(rank, avoid="m"), wrap(call["dim"], rank)
    halves = [f"m {name}" if d == dim else name for d, name in enumerate(names)]
    return described(call, [halves], [names], sizes={"m": 2}, whole="m")


@rule(aten.to.other, aten.type_as.default)
def convert_like(call: OpCall) -> FactorMap:
    """Pointwise in the first operand; the second only lends its dtype.

    Dims of the second that line up with the result share its factors, so that it may be sliced along; others are
    whole.
    """
    shape = call.results[0].shape
    other = call.operands[1].shape
    names = letters(len(shape) + len(other))
    same, spare = names[: len(shape)], names[len(shape) :]
    lent = []
    for d in range(len(other)):
        position = d - len(other) + len(shape)
        lines_up = position >= 0 and other[d] in (1, shape[position])
        lent.append(same[position] if lines_up else spare[d])
    return described(call, [same, lent], [same], whole=spare)


@rule(aten.view.dtype)
def view_dtype(call: OpCall) -> FactorMap:
    """Pointwise while the item size stays; otherwise the last dim changes its size."""
    return broadcast(call) if call.operands[0].shape == call.results[0].shape else opaque(call)
