"""Sample calls of every operator with an axis rule, and what running them in slices takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

import sicompiler.axes.rules  # noqa: F401  (registers the rules)
import tests.rules.samples_math
import tests.rules.samples_pointwise
import tests.rules.samples_shape
import tests.rules.samples_space  # noqa: F401  (registers the samplers)
from sicompiler.axes.factor_map import FactorMap, FactorSlicing, Slicing
from sicompiler.axes.registry import OpCall, TensorSpec, factor_map, op_call
from sicompiler.axes.resize import copying_twin, resize
from sicompiler.facts.calls import bind, flatten_tensors
from tests.rules.draw import SAMPLERS, Draw

aten = torch.ops.aten

# What these hold is arbitrary: only shapes are compared.
UNDEFINED = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}


@dataclass(frozen=True)
class Sample:
    """One call with real tensors, its whole result and its axis rule."""

    target: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    whole: tuple[Tensor, ...]
    call: OpCall
    map: FactorMap


def sample(target: OpOverload, choose: Callable[[Sequence[Any]], Any]) -> Sample:
    """Make up a call, run it and ask for its rule."""
    args, kwargs = SAMPLERS[target](Draw(choose), target)
    return sample_of(target, *args, **kwargs)


def sample_of(target: OpOverload, *args: Any, **kwargs: Any) -> Sample:
    """The sample for given arguments, all of them written out, by position where that is allowed."""
    named = bind(target, args, kwargs)
    keyword = {argument.name for argument in target._schema.arguments if argument.kwarg_only}
    positional = tuple(value for name, value in named.items() if name not in keyword)
    named = {name: value for name, value in named.items() if name in keyword}
    whole = run(target, positional, named)
    specs = iter(TensorSpec(tuple(t.shape), t.dtype) for t in tensors_of(target, positional, named))
    spec_args, spec_kwargs = with_tensors(target, positional, named, specs)
    results = tuple(TensorSpec(tuple(t.shape), t.dtype) for t in whole)
    call = op_call(target, spec_args, spec_kwargs, results)
    found = factor_map(call)
    assert found is not None
    return Sample(target, positional, named, tensors_of(target, positional, named), whole, call, found)


def seeded(seed: int) -> Callable[[Sequence[Any]], Any]:
    """A chooser that always makes the same choices."""
    return random.Random(seed).choice


def run(target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The results of a call as a tuple."""
    result = target(*args, **kwargs)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def tensors_of(target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensor arguments in schema order."""
    return flatten_tensors(bind(target, args, kwargs), lambda value: isinstance(value, Tensor))


def with_tensors(
    target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Iterator[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other tensors, or whatever stands for them, in schema order."""

    def swap(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [swap(item) for item in value]
        return next(tensors) if isinstance(value, Tensor) else value

    return tuple(swap(value) for value in args), {name: swap(value) for name, value in kwargs.items()}


def narrow(tensor: Tensor, slicing: Slicing, start: int, length: int) -> Tensor:
    """One slice of a tensor."""
    dim = slicing.dim
    parts: Tensor = tensor.unflatten(dim, (slicing.outer, slicing.size, slicing.inner))
    return parts.narrow(dim + 1, start, length).flatten(dim, dim + 2)


def write(tensor: Tensor, slicing: Slicing, start: int, part: Tensor) -> None:
    """Put a slice back where `narrow` takes it from."""
    dim = slicing.dim
    parts = tensor.view(*tensor.shape[:dim], slicing.outer, slicing.size, slicing.inner, *tensor.shape[dim + 1 :])
    length = part.shape[dim] // (slicing.outer * slicing.inner)
    parts.narrow(dim + 1, start, length).copy_(part.unflatten(dim, (slicing.outer, length, slicing.inner)))


def run_slice(found: Sample, cut: FactorSlicing, start: int, length: int) -> tuple[Tensor, ...]:
    """Run one slice: operands narrowed, baked sizes changed; operands without the factor are added once."""
    targets = found.map.results
    placed = [found.map.place(dims, cut) for dims in found.map.operands]
    adds_up = all(found.map.place(dims, cut) is None for dims in targets)
    operands = []
    for tensor, slicing in zip(found.tensors, placed, strict=True):
        if slicing is not None:
            operands.append(narrow(tensor, slicing, start, length))
        else:
            operands.append(torch.zeros_like(tensor) if adds_up and start > 0 else tensor)
    args, kwargs = with_tensors(found.target, found.args, found.kwargs, iter(operands))
    result = found.map.place(targets[0], cut)
    if result is not None:
        per_entry = result.outer * result.inner
        args, kwargs = resize(
            found.target,
            args,
            kwargs,
            len(targets[0]),
            result.dim,
            per_entry * length,
            old_size=per_entry * result.size,
        )
    return run(copying_twin(found.target), args, kwargs)


def same(found: Sample, ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are equal up to a relative error of 1e-12 in the largest entry."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if found.target in UNDEFINED or torch.equal(ours, theirs):
        return True
    largest = theirs.nan_to_num().abs().max().item() if theirs.numel() and theirs.dtype != torch.bool else 0.0
    if theirs.is_floating_point() or theirs.is_complex():
        return torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12 * largest, equal_nan=True)
    return False
