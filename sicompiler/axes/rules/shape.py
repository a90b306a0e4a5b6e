"""Views and other changes of shape: dims are split into common factors, reordered or expanded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from sicompiler.axes.factor_map import Dims, FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import described, letters, opaque, wrap
from sicompiler.axes.rules.pointwise import broadcast, pointwise

aten = torch.ops.aten

# An expanded dim is a factor of the result only, and free: the slice of the operand is the operand.
pointwise(aten.expand.default, aten.broadcast_to.default, aten.expand_as.default)


def refine(source: Sequence[int], target: Sequence[int]) -> tuple[Dims, Dims, dict[str, int], set[str]]:
    """Split two shapes of the same number of elements into common factors.

    Both shapes are cut where their trailing products agree. In each such group the common divisors of the outermost
    dims, then of the innermost dims, are shared factors. What is left does not correspond dim by dim ([2, 3] against
    [3, 2]) and becomes factors of one side, to be kept whole.

    Args:
        source: the shape before.
        target: the shape after.

    Returns:
        The dims of both sides, the size of each factor and the factors to keep whole.
    """
    names = itertools.chain(letters(26), (f"a{number}" for number in itertools.count()))
    sizes: dict[str, int] = {}
    whole: set[str] = set()
    dims: list[list[tuple[str, ...]]] = [[() for _ in source], [() for _ in target]]

    def fresh(size: int) -> str:
        name = next(names)
        sizes[name] = size
        return name

    for before, after in _groups(source, target):
        left: tuple[list[list[int]], ...] = ([[d, source[d]] for d in before], [[d, target[d]] for d in after])
        heads = _shared(left, 0)
        tails = _shared(left, -1)
        for side, (found, rest) in enumerate(zip(dims, left, strict=True)):
            outer = [(d, fresh(size) if side == 0 else "") for d, size in rest if size > 1]
            del found, outer
        for size, d, e in heads:
            name = fresh(size)
            dims[0][d] += (name,)
            dims[1][e] += (name,)
        del tails
    return tuple(dims[0]), tuple(dims[1]), sizes, whole
