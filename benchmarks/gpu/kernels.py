"""Workspace of single kernels on a device, measured beside what is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from sicompiler.facts.calls import bind, flatten_tensors
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.runtime.measure import measure_peak

aten = torch.ops.aten
Call = tuple[OpOverload, list[Any]]
Make = Callable[[Callable[..., torch.Tensor], int], Call]


def _convolution(rank: int, channels: int, *size: int) -> Make:
    target = (aten.conv2d, aten.conv3d)[rank - 2].default

    def make(draw: Callable[..., torch.Tensor], scale: int) -> Call:
        x = draw(1, channels, *(max(length // scale, 4) for length in size))
        weight = draw(channels, channels, *[3] * rank)
        return target, [x, weight, draw(channels), [1] * rank, [1] * rank]

    return make


def _product(rows: int, columns: int, inner: int) -> Make:
    return lambda draw, scale: (aten.linear.default, [draw(rows // scale, inner), draw(columns, inner), draw(columns)])


def _attention(heads: int, tokens: int, width: int) -> Make:
    def make(draw: Callable[..., torch.Tensor], scale: int) -> Call:
        return aten.scaled_dot_product_attention.default, [draw(1, heads, tokens // scale, width) for _ in range(3)]

    return make


def _norm(target: OpOverload, shape: tuple[int, ...], *arguments: Any) -> Make:
    return lambda draw, scale: (target, [draw(*shape[:-1], max(shape[-1] // scale, 8)), *arguments])


# By name: sizes as in the decoders and denoisers of the presets.
KERNELS: Mapping[str, Make] = {
    "conv2d 128 x 576 x 1024": _convolution(2, 128, 576, 1024),
    "conv2d 512 x 72 x 128": _convolution(2, 512, 72, 128),
    "conv3d 128 x 8 x 240 x 416": _convolution(3, 128, 8, 240, 416),
    "linear 32760 x 1536 x 8960": _product(32760, 8960, 1536),
    "linear 4096 x 320 x 320": _product(4096, 320, 320),
    "attention 12 heads, 32760 tokens of 128": _attention(12, 32760, 128),
    "attention 5 heads, 9216 tokens of 64": _attention(5, 9216, 64),
    "attention 8 heads, 4096 tokens of 40": _attention(8, 4096, 40),
    "group_norm 320 x 72 x 2048": _norm(aten.group_norm.default, (2, 320, 72, 2048), 32),
    "group_stats 320 x 72 x 2048": _norm(torch.ops.sicompiler.group_stats.default, (2, 320, 72, 2048), 32),
    "softmax 4096 x 4096": _norm(aten.softmax.int, (8, 512, 4096), -1),
    "upsample 256 x 288 x 512": lambda draw, scale: (
        aten.upsample_nearest2d.vec,
        [draw(1, 256, 288 // scale, 512 // scale), None, [2.0, 2.0]],
    ),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def measured_workspace(name: str, dtype: torch.dtype, device: torch.device, scale: int) -> Mapping[str, Any]:
    """Run one kernel and see what it allocated beside its results.

    Args:
        name: one of `KERNELS`.
        dtype: of all tensors.
        device: where.
        scale: what sizes are divided by, for a rehearsal.

    Returns:
        Bytes that were measured and predicted, and those of the operands and results.
    """
    target, arguments = KERNELS[name](lambda *shape: torch.randn(shape, device=device).to(dtype), scale)
    bound = bind(target, tuple(arguments), {})
    operands = flatten_tensors(bound, lambda value: isinstance(value, torch.Tensor))
    with torch.no_grad():
        target(*arguments)  # libraries take what they keep at their first call
        with measure_peak(device) as peak:
            result = target(*arguments)
    results = [TensorFact(tuple(result.shape), tuple(result.stride()), result.dtype, 0)]
    facts = [TensorFact(tuple(t.shape), tuple(t.stride()), t.dtype, 0) for t in operands]
    return {
        "measured_bytes": max(0, peak.bytes - result.untyped_storage().nbytes()),
        "predicted_bytes": workspace_bytes(target, facts, results, device.type, bound),
        "tensor_bytes": sum(fact.nbytes for fact in (*facts, *results)),
    }
