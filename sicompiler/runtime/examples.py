"""Example inputs after a call: its tensors without their data, and random ones made of them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import flatten_inputs
from sicompiler.errors import BadInput

Inputs = tuple[Sequence[Any], Mapping[str, Any]]


def checked_inputs(example_inputs: object) -> Inputs:
    """Example inputs as a user gave them, in their two parts.

    Raises:
        BadInput: they are no pair of positional and keyword arguments.
    """
    match example_inputs:
        case (list() | tuple() as args, Mapping() as kwargs):
            return args, kwargs
    shown = type(example_inputs).__name__
    if isinstance(example_inputs, (list, tuple)):
        shown = f"{shown} of {', '.join(type(value).__name__ for value in example_inputs) or 'nothing'}"
    raise BadInput(
        f"example_inputs is a pair ((positional, ...), {{name: keyword}}), such as ((x,), {{}}), got a {shown}"
    )


def without_data(args: Sequence[Any], kwargs: Mapping[str, Any], keep: Collection[int] = ()) -> Inputs:
    """The inputs of a call with meta tensors, so that nothing of the caller's is kept alive.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
        keep: positions among the flat inputs of tensors that are copied instead: a model decides by their values.
    """
    leaves, spec = flatten_inputs(args, kwargs)
    kept = {id(leaves[position]) for position in keep}

    @functools.cache
    def held(leaf: torch.Tensor) -> torch.Tensor:  # one for each tensor, however often it is passed
        return leaf.clone() if id(leaf) in kept else leaf.to("meta")

    specs = [held(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    inputs: Inputs = pytree.tree_unflatten(specs, spec)
    return inputs


def random_inputs(specs: Inputs, device: torch.device) -> Inputs:
    """Random tensors on a device in the place of meta tensors."""
    generator = torch.Generator().manual_seed(0)

    @functools.cache
    def fill(spec: torch.Tensor) -> torch.Tensor:
        if not spec.is_meta:
            return spec
        if spec.is_floating_point():
            return torch.randn(spec.shape, generator=generator, dtype=torch.float32).to(device, spec.dtype)
        return torch.zeros(spec.shape, dtype=spec.dtype, device=device)

    inputs: Inputs = pytree.tree_map_only(torch.Tensor, fill, specs)
    return inputs
