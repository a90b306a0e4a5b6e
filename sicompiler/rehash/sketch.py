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
    Here the sums that entries are added to are drawn for one piece, and turned by a random distance for every other.

    Args:
        tensors: dense, floating point.
        seed: of the projection.

    Returns:
        [WIDTH], float64, on the CPU.
    """
    found = torch.zeros(WIDTH, dtype=torch.float64)
    longest = min(max(t.numel() for t in tensors), PIECE)
    drawn = torch.randint(0, WIDTH, (longest,), generator=_generator(seed)).to(tensors[0].device)
    for number, tensor in enumerate(tensors):
        flat = tensor.detach().as_strided((tensor.numel(),), (1,))
        for low in range(0, flat.numel(), PIECE):
            piece, generator = flat[low : low + PIECE], _generator(seed, number, low)
            signs = torch.randint(0, 2, (piece.numel(),), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            signed = signs.to(piece.device).float().mul_(piece)
            sums = torch.zeros(WIDTH, device=piece.device).index_add_(0, drawn[: piece.numel()], signed)
            found += sums.cpu().double().roll(int(torch.randint(WIDTH, (), generator=generator)))
    return found


def _generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seeds) & (2**62 - 1))
