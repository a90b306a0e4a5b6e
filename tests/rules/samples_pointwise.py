"""Sample calls of pointwise operators, made from their schemas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.axes.registry import rules
from sicompiler.axes.rules.pointwise import broadcast
from tests.rules.draw import SAMPLERS, Args, Draw, sampler

aten = torch.ops.aten

INTEGER = ("bitwise", "__and__", "__or__", "__xor__")
SPECIAL = (aten.expand_as.default, aten.expand.default, aten.broadcast_to.default, aten.broadcast_tensors.default)


def pointwise_call(draw: Draw, target: OpOverload) -> Args:
    """Arguments for a pointwise operator: the first tensor has the shape of the result, the others broadcast to it."""
    shape = draw.shape()
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    name = target._schema.name.removeprefix("aten::")

    def tensor(argument: str) -> Tensor:
        first = not any(isinstance(value, Tensor) for value in args)
        size = shape if first else draw.shrunk(shape)
        if name == "masked_fill" and argument == "value":
            return draw.unit()
        if argument in ("mask", "condition"):
            return draw.mask(*size)
        if name in ("_conj", "imag"):  # these refuse real numbers
            return torch.complex(draw.unit(*size), draw.unit(*size))
        return draw.integers(8, *size) if name.startswith(INTEGER) else draw.unit(*size)

    for position, argument in enumerate(target._schema.arguments):
        kind = str(argument.type)
        value: Any
        if name == "fill" and position == 1:
            value = draw.unit() if "Tensor" in kind else 0.5
        elif "Tensor" in kind:
            value = tensor(argument.name)
        elif name in ("clamp", "clip"):
            value = [0.3, 0.6][position - 1]
        elif argument.has_default_value():
            continue
        elif argument.name == "decimals":
            value = 1
        elif name == "to":
            value = torch.device("cpu") if argument.name == "device" else torch.float64
        elif "bool" in kind:
            value = False
        else:
            value = {"rounding_mode": "floor"}.get(argument.name, 3 if name.startswith(INTEGER) else 0.75)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


for _target, _rule in rules().items():
    if _rule is broadcast and _target not in SPECIAL:
        SAMPLERS[_target] = pointwise_call


@sampler(aten.broadcast_tensors.default)
def _broadcast_tensors(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [[draw.tensor(*draw.shrunk(shape)) for _ in range(2)] + [draw.tensor(*shape)]], {}


@sampler(aten.dropout.default)
def _dropout(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(*draw.shape()), 0.5, False], {}


@sampler(aten.expand.default, aten.broadcast_to.default)
def _expand(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    source = draw.shrunk(shape)
    sizes = list(shape)
    for d in range(1, len(source) + 1):
        if source[-d] == shape[-d] and draw.flag():
            sizes[-d] = -1
    return [draw.tensor(*source), sizes], {}


@sampler(aten.expand_as.default)
def _expand_as(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*draw.shrunk(shape)), draw.tensor(*shape)], {}


@sampler(aten.glu.default)
def _glu(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    dim = draw.dim(len(shape))
    shape[dim] *= 2
    return [draw.tensor(*shape), dim], {}


@sampler(aten.to.other, aten.type_as.default)
def _like(draw: Draw, target: OpOverload) -> Args:
    shape = draw.shape()
    return [draw.tensor(*shape), draw.tensor(*draw.pick([shape, draw.shape()]))], {}


@sampler(aten.view.dtype)
def _view_dtype(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(*draw.shape()), torch.int64], {}
