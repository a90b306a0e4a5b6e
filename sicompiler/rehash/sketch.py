"""Sketches: small random projections of features, from which inner products of the features are estimated."""

from __future__ import annotations

import torch

WIDTH = 4096
"""Numbers in a sketch. The estimate of an inner product is off by about sqrt(2 / WIDTH) of the product of the norms."""

PIECE = 2**20
"""Entries that are worked on at a time."""

SCRATCH = 16
"""Bytes for each of them, beside the features."""

Snapshot = tuple[torch.Tensor, ...]  # the feature of one evaluation: the values of a cut


def sketch(tensors: Snapshot, seed: int = 0) -> torch.Tensor:
    """A CountSketch of some tensors laid end to end: each entry is added to one of `WIDTH` sums, with a random sign.

    Linear, and the same seed gives the same projection, so sketches of features of one layout can be subtracted and
    multiplied in their place. M. Charikar, K. Chen, M. Farach-Colton: Finding frequent items in data streams (2002).

    Args:
        tensors: dense, floating point.
        seed: of the projection.

    Returns:
        [WIDTH], float64, on the CPU.
    """
    found = torch.zeros(WIDTH, dtype=torch.float64)
    for number, tensor in enumerate(tensors):
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        for low in range(0, flat.numel(), PIECE):
            piece = flat[low : low + PIECE]
            generator = torch.Generator().manual_seed(hash((seed, number, low)) & (2**62 - 1))
            signs = torch.randint(0, 2, (piece.numel(),), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            signed = piece.float() * signs.to(piece.device)
            rest = -signed.numel() % WIDTH
            found += torch.nn.functional.pad(signed, (0, rest)).view(-1, WIDTH).sum(0, dtype=torch.float64).cpu()
    return found
