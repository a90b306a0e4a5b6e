"""Inputs of a call without their data, and random ones in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

Inputs = tuple[Sequence[Any], Mapping[str, Any]]


def specs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """The inputs without their data: tensors as meta tensors, so that nothing of the caller's is kept alive."""
    found: Inputs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (tuple(args), dict(kwargs)))
    return found


def random_inputs(inputs: Inputs, device: torch.device) -> Inputs:
    """Random inputs of the layouts of earlier ones; integers are zero.

    Args:
        inputs: without their data.
        device: where to make them.
    """
    generator = torch.Generator().manual_seed(0)

    def fill(spec: torch.Tensor) -> torch.Tensor:
        if spec.is_floating_point():
            return torch.randn(spec.shape, generator=generator, dtype=torch.float32).to(device, spec.dtype)
        return torch.zeros(spec.shape, dtype=spec.dtype, device=device)

    filled: Inputs = pytree.tree_map_only(torch.Tensor, fill, inputs)
    return filled
