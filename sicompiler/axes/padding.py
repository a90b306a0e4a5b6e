"""Taking the padding of a window out of a call, so that a slice gets it only where it touches a true border."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from sicompiler.axes.factor_map import Window
from sicompiler.facts.calls import bind
from sicompiler.facts.users import OperatorRow, Unpad, user_row

aten = torch.ops.aten

_CONVOLUTIONS: Mapping[OpOverload, OpOverload] = MappingProxyType(
    {
        aten.conv1d.default: aten.conv1d.default,
        aten.conv2d.default: aten.conv2d.default,
        aten.conv3d.default: aten.conv3d.default,
        aten.conv1d.padding: aten.conv1d.default,
        aten.conv2d.padding: aten.conv2d.default,
        aten.conv3d.padding: aten.conv3d.default,
    }
)
_MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
_AVERAGE_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_PADS = (aten.constant_pad_nd.default, aten.pad.default)
_REPLICATION_PADS = (aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)

Args = tuple[Any, ...]


@dataclass(frozen=True)
class Unpadded:
    """A call that does not pad one dim any more.

    Attributes:
        target, args, kwargs: the call.
        value: with what the dim has to be padded before.
    """

    target: OpOverload
    args: Args
    kwargs: dict[str, Any]
    value: float


def pads_by_itself(target: object) -> bool:
    """Whether an operator is nothing but padding, whose sizes are arguments of the call."""
    return target in _PADS or target in _REPLICATION_PADS


def padding_value(target: OpOverload, args: Args, kwargs: Mapping[str, Any]) -> float | None:
    """The number that a padding operator fills with; None where it fills with what lies at the border."""
    arguments = bind(target, args, dict(kwargs))
    if target not in _PADS or arguments.get("mode", "constant") != "constant":
        return None
    return float(arguments["value"] or 0)


def repadded(target: OpOverload, args: Args, kwargs: Mapping[str, Any], rank: int, dim: int, pads: Any) -> Args:
    """The arguments of a padding operator that pads `dim` by other amounts.

    Args:
        target: the operator.
        args: positional arguments of the call; the amounts are the second.
        kwargs: keyword arguments; they may hold the amounts instead.
        rank: dims of the tensor.
        dim: the dim, counted from the front.
        pads: amounts before and behind: numbers or fx nodes.
    """
    name = "pad" if target in _PADS else "padding"
    listed = list(bind(target, args, dict(kwargs))[name])
    position = 2 * (rank - 1 - dim)
    listed[position : position + 2] = pads
    return (args[0], listed, *args[2:])


def unpadded(
    target: OpOverload, args: Args, kwargs: Mapping[str, Any], rank: int, dim: int, window: Window
) -> Unpadded:
    """The call of a convolution or pooling without padding along one dim.

    Args:
        target: the operator.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        rank: dims of the tensor.
        dim: the dim whose padding goes, counted from the front.
        window: of that dim.
    """
    if window.pad_lo == window.pad_hi == 0:
        return Unpadded(target, args, dict(kwargs), 0.0)
    arguments = bind(target, args, dict(kwargs))
    row = user_row(target)
    if row is not None and row.unpad is not None:
        return _unpadded_by(row.unpad, target, arguments, dim)
    count = next(int(mark[0]) for mark in ("1d", "2d", "3d") if mark in str(target))
    padding = _as_numbers(arguments, count)
    padding[dim - (rank - count)] = 0
    names = [a.name for a in target._schema.arguments]
    plain = _CONVOLUTIONS.get(target, target)
    positional = tuple(padding if name == "padding" else arguments[name] for name in names)
    return Unpadded(plain, positional, {}, -math.inf if target in _MAX_POOLS else 0.0)


def _unpadded_by(unpad: Unpad, target: OpOverload, arguments: Mapping[str, Any], dim: int) -> Unpadded:
    changed, value = unpad(MappingProxyType(dict(arguments)), dim)
    keyword = {argument.name for argument in target._schema.arguments if argument.kwarg_only}
    args = tuple(changed[argument.name] for argument in target._schema.arguments if argument.name not in keyword)
    return Unpadded(target, args, {name: changed[name] for name in sorted(keyword)}, value)


def why_not_of_user(row: OperatorRow, target: object, args: Args, window: Window, operand: int) -> str | None:
    """Why a call of a user's operator can't be cut along a window; None if it can.

    Args:
        row: what the user says of the operator.
        target: the operator.
        args: positional arguments of the call.
        window: along which it is sliced.
        operand: which of its tensors comes in slices.
    """
    if operand != 0 or not args or not isinstance(args[0], fx.Node):
        return f"{target} has a window along another tensor than its first argument"
    if window.pads and row.unpad is None:
        return f"nothing is known of the padding of {target}: give padding= to sicompiler.rule"
    return None


def why_not(target: object, args: Args, kwargs: Mapping[str, Any]) -> str | None:
    """Why the padding of a call can't be told slice by slice; None if it can."""
    if target in _PADS or target in _REPLICATION_PADS:
        return None
    if not isinstance(target, OpOverload) or target not in (*_CONVOLUTIONS, *_MAX_POOLS, *_AVERAGE_POOLS):
        return f"nothing is known of the padding of {target}"
    arguments = bind(target, args, kwargs)
    if target in _AVERAGE_POOLS and _pads(arguments["padding"]) and not arguments["count_include_pad"]:
        return "it averages over fewer entries at the borders (count_include_pad=False)"
    if arguments["padding"] == "same" and any(total % 2 for total in _same_totals(arguments)):
        return "padding='same' pads one side more, which no other call of it can say"
    return None


def _pads(padding: Any) -> bool:
    return any([padding] if isinstance(padding, int) else padding)


def _same_totals(arguments: Mapping[str, Any]) -> list[int]:
    """Padding of each spatial dim, both sides together, that gives a result of the size of the input."""
    weight = arguments["weight"]
    kernels = (weight.meta["val"] if isinstance(weight, fx.Node) else weight).shape[2:]
    dilation = arguments["dilation"]
    dilations = [dilation] if isinstance(dilation, int) else list(dilation)
    if len(dilations) == 1:
        dilations *= len(kernels)
    return [d * (k - 1) for k, d in zip(kernels, dilations, strict=True)]


def _as_numbers(arguments: Mapping[str, Any], count: int) -> list[int]:
    padding = arguments["padding"]
    if padding == "same":
        return [total // 2 for total in _same_totals(arguments)]
    numbers = [padding] if isinstance(padding, int) else list(padding)
    return numbers * count if len(numbers) == 1 else numbers
