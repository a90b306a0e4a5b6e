"""Objects that components return, told to torch: how the tensors in them are taken out and put back."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree


def register_outputs() -> None:
    """Let what `vae.encode` returns through `torch.export`: a distribution, made again from its moments."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    if DiagonalGaussianDistribution in pytree.SUPPORTED_NODES:
        return

    def flatten(found: Any) -> tuple[list[Any], Any]:
        return [found.parameters], found.deterministic

    def unflatten(values: Any, deterministic: Any) -> Any:
        return DiagonalGaussianDistribution(*values, deterministic=deterministic)

    pytree.register_pytree_node(
        DiagonalGaussianDistribution,
        flatten,
        unflatten,
        serialized_type_name=f"{DiagonalGaussianDistribution.__module__}.{DiagonalGaussianDistribution.__qualname__}",
    )
