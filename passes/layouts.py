"""Layouts as kernels choose them: fake values whose strides the real kernels would not give are put right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sicompiler.capture import Program
from sicompiler.facts.calls import bind
from sicompiler.passes.edit import Replacements

aten = torch.ops.aten

Strided = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
Channels = bool  # whether a result has its channels innermost; else it is row-major


def suggests_channels_last(tensor: Strided) -> bool:
    """What `suggest_memory_format` says of a tensor, as c10/core/MemoryFormat.h computes it from its strides.

    Args:
        tensor: shape and strides; those of dims of one entry count too.
    """
    shape, stride = tensor
    if len(shape) not in (4, 5) or stride[1] == 0:
        return False
    least = 0
    for d in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[d] == 0 or stride[d] < least or (d == 0 and least == stride[1]):
            return False
        least = stride[d] * (shape[d] if shape[d] > 1 else 1)
    return True


def _joined(parts: Sequence[Strided]) -> Channels:
    """`cat` is channels-last where all its operands are."""
    return bool(parts) and all(map(suggests_channels_last, parts))


def _cat(arguments: dict[str, Any]) -> Channels:
    return _joined([_strided(t) for t in arguments["tensors"] if t.numel()])


def _roll(arguments: dict[str, Any]) -> Channels | None:
    """A roll is a `cat` of two narrowed views for one dim, and one roll after the other for several."""
    tensor, dims = arguments["self"], list(arguments["dims"] or ())
    if not dims:
        return False
    shape, stride = _strided(tensor)
    channels = False
    for dim, shift in zip(dims, arguments["shifts"], strict=True):
        size = shape[dim]
        start = (size - shift) % max(size, 1)
        parts = [(*shape[: dim % len(shape)], n, *shape[dim % len(shape) + 1 :]) for n in (size - start, start)]
        channels = _joined([(part, stride) for part in parts])
        stride = _strides(shape, channels)
    return channels


def _pad(arguments: dict[str, Any]) -> Channels:
    """Circular padding fills a row-major tensor; the other modes follow the input."""
    if arguments["mode"] == "circular":
        return False
    return suggests_channels_last(_strided(arguments["self"]))


def _follows(name: str) -> Callable[[dict[str, Any]], Channels]:
    def follow(arguments: dict[str, Any]) -> Channels:
        return suggests_channels_last(_strided(arguments[name]))

    return follow


def _transposed(arguments: dict[str, Any]) -> Channels | None:
    """A transposed convolution is channels-last where its input or weight is; what else it is, fake tensors know."""
    either = any(suggests_channels_last(_strided(arguments[name])) for name in ("input", "weight"))
    return None if either else False


ROWS: dict[Any, Callable[[dict[str, Any]], Channels | None]] = {
    aten.batch_norm.default: _follows("input"),
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _follows("self"),
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.conv_transpose3d.input: _transposed,
    aten.group_norm.default: _follows("input"),
    aten.pad.default: _pad,
    aten.roll.default: _roll,
}


VIEWS = frozenset({aten.reshape.default, aten.view.default, aten._unsafe_view.default})


def view_strides(tensor: Strided, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of a view of another shape, as `computeStride` in aten/src/ATen/TensorUtils.cpp finds them.

    Args:
        tensor: what is viewed, not empty.
        shape: of the view, with as many elements.

    Returns:
        The strides, those of dims of one entry too; None where no view has this shape.
    """
    old, strides = tensor
    made, d, chunk, count = [1] * len(shape), len(shape) - 1, 1, 1
    base = strides[-1] if old else 1
    for before in range(len(old) - 1, -1, -1):
        chunk *= old[before]
        if before and (old[before - 1] == 1 or strides[before - 1] == chunk * base):
            continue
        while d >= 0 and (count < chunk or shape[d] == 1):
            made[d] = count * base
            count *= shape[d]
            d -= 1
        if count != chunk:
            return None
        if before:
            base, chunk, count = strides[before - 1], 1, 1
    return tuple(made) if d < 0 or not old else None


def real_layouts(program: Program) -> None:
    """Give fake values the strides that the CPU's kernels give the real ones.

    Before: `p = pad(x, ..., "reflect")`, of a channels-last `x`, row-major by its fake tensor
    After:  the same call, channels-last, and what reads it evaluated again
    Exact because no call changes: only what is known of their results. Fake tensors differ from kernels where strides
    of a batch of one, or a permuted input, leave the memory format open. A convolution further on then chooses another
    algorithm, and other memory, than was planned. Refuses other devices, whose kernels were not compared.
    """
    replacements = Replacements(program.graph_module.graph, program.fake_mode)
    for node in program.graph_module.graph.nodes:
        replacements.follow(node)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or not value.numel():
            continue
        stride = _real_strides(node, value)
        if stride is None or stride == tuple(value.stride()):
            continue
        with program.fake_mode:
            if node.target in VIEWS:
                new = value.as_strided(value.shape, stride)
            else:
                new = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device)
        replacements.changed(node, new)


def _real_strides(node: fx.Node, value: torch.Tensor) -> tuple[int, ...] | None:
    """Strides of a call's result by the kernel; None where the fake value is to be believed."""
    if node.target in VIEWS:
        source = node.args[0].meta["val"]  # type: ignore[union-attr]
        return view_strides(_strided(source), list(value.shape))
    row = ROWS.get(node.target)
    channels = None if row is None else row(_bound(node))
    return None if channels is None else _strides(tuple(value.shape), channels)


def _bound(node: fx.Node) -> dict[str, Any]:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    target: Any = node.target
    return bind(target, args, kwargs)


def _strided(tensor: torch.Tensor) -> Strided:
    return tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride()))


def _strides(shape: Sequence[int], channels: bool) -> tuple[int, ...]:
    """Strides of a dense tensor, row-major or with the channels innermost."""
    order = [0, *range(2, len(shape)), 1] if channels else list(range(len(shape)))
    stride, step = [1] * len(shape), 1
    for dim in reversed(order):
        stride[dim] = step
        step *= max(shape[dim], 1)
    return tuple(stride)
