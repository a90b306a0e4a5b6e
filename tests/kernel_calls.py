"""Calls of operators in every memory layout and dtype, and what they allocate against what is predicted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.facts.calls import bind, flatten_tensors
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.runtime.measure import measure_peak
from tests.rules.draw import SAMPLERS, Draw

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


@dataclass(frozen=True)
class Allocated:
    """What one call allocated beside its results.

    Attributes:
        measured, predicted: bytes.
        total: bytes of operands, results and measured workspace together.
    """

    measured: int
    predicted: int
    total: int


def fact(tensor: Tensor) -> TensorFact:
    """What the planner knows of a tensor."""
    return TensorFact(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, 0, tensor.requires_grad)


def allocated(
    target: OpOverload,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    facts: Callable[[list[Tensor], list[Tensor]], tuple[list[TensorFact], list[TensorFact]]] | None = None,
) -> Allocated:
    """Run a call and compare.

    Args:
        target: the operator.
        args: positional arguments.
        kwargs: keyword arguments.
        facts: what the planner takes operands and results to be; None: what they are.
    """
    arguments = bind(target, tuple(args), kwargs)
    operands = flatten_tensors(arguments, lambda value: isinstance(value, Tensor))
    with torch.no_grad(), measure_peak("cpu") as peak:
        result = target(*args, **kwargs)
    results = [result] if isinstance(result, Tensor) else [t for t in result if isinstance(t, Tensor)]
    given = {t.untyped_storage().data_ptr() for t in operands}
    owned = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in results}
    measured = peak.bytes - sum(nbytes for pointer, nbytes in owned.items() if pointer not in given)
    known = facts(operands, results) if facts is not None else ([*map(fact, operands)], [*map(fact, results)])
    predicted = workspace_bytes(target, *known, "cpu", arguments)
    total = peak.bytes + sum(t.numel() * t.element_size() for t in operands)
    return Allocated(measured, predicted, total)


class LargeDraw(Draw):
    """Draws sizes several times as large, where any size will do."""

    def size(self, low: int = 1, high: int = 6) -> int:
        """A size between two bounds; seven times as large if the bounds are the default."""
        size = super().size(low, high)
        return 7 * size if high == 6 else size

    def shape(self, low_rank: int = 1, high_rank: int = 4) -> list[int]:
        """A shape of 7 to 35 entries a dim; the outer dims of four are shorter."""
        rank = super().size(low_rank, high_rank)
        return [super(LargeDraw, self).size(1, 5) * (2 if rank > 3 and dim < 2 else 7) for dim in range(rank)]


def _strided(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


def _narrowed(tensor: Tensor) -> Tensor:
    dim = min(1, tensor.dim() - 1)
    return torch.cat([tensor, tensor], dim).narrow(dim, 0, tensor.shape[dim])


def _swapped(first: int, second: int) -> Callable[[Tensor], Tensor]:
    def swap(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2:
            return tensor
        return tensor.transpose(first, second).contiguous().transpose(first, second)

    return swap


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() < 3 else tensor.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda tensor: tensor,
    "strided": _strided,
    "narrowed": _narrowed,
    "permuted": _swapped(0, 1),
    "transposed": _swapped(-1, -2),
    "expanded": lambda tensor: tensor[..., :1].expand(tensor.shape),
    "channels_last": _channels_last,
}


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An argument with every tensor of one dim or more changed."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() else value
    return [changed(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(COMPLEX.get(dtype, torch.complex64))
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype) if dtype.is_floating_point else (4 * tensor).to(dtype)

    return cast


def arguments(
    target: OpOverload, seed: int, dtype: torch.dtype, layout: str, *, draw: type[Draw] = LargeDraw
) -> tuple[list[Any], dict[str, Any]]:
    """A sampled call in a dtype, its operands in a layout (weights and indices too)."""
    args, kwargs = SAMPLERS[target](draw(random.Random(f"{target} {seed}").choice), target)
    return changed(changed(args, _to(dtype)), LAYOUTS[layout]), kwargs


def calls(target: OpOverload, seeds: int, *, every_layout: bool, least: int = 0) -> Iterator[tuple[str, Allocated]]:
    """Sampled calls of an operator that its kernels accept, each run.

    Args:
        target: the operator.
        seeds: how many calls for each dtype and layout.
        every_layout: all of `LAYOUTS`; else dense, and one other for each dtype.
        least: bytes of operands below which a call is left out.

    Yields:
        The call in words, and what it allocated.
    """
    for dtype in DTYPES:
        other = random.Random(f"{target} {dtype}").choice(list(LAYOUTS)[1:])
        for layout in LAYOUTS if every_layout else ("dense", other):
            for seed in range(seeds):
                args, kwargs = arguments(target, seed, dtype, layout)
                if least and sum(t.numel() * t.element_size() for t in tensors(args)) < least:
                    continue
                try:
                    done = allocated(target, args, kwargs)
                except (RuntimeError, NotImplementedError, ValueError):
                    continue  # a view of strides it refuses, a dtype it isn't written for
                yield f"{target} in {dtype}, {layout}, {shapes(args)} {kwargs}: {done}", done


def tensors(value: Any) -> list[Tensor]:
    """The tensors among arguments."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def shapes(value: Any) -> Any:
    """Arguments with shapes in place of tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return [shapes(item) for item in value] if isinstance(value, (list, tuple)) else value
