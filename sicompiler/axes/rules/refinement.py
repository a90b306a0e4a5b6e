"""Common refinement of two shapes: how the dims of a reshape's operand and result correspond."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sicompiler.axes.factor_map import Dims
from sicompiler.axes.rules.building import letters

_Part = list[int]  # [dim, what is left of its size]


@dataclass(frozen=True)
class Refinement:
    """Two shapes written in common factors.

    Attributes:
        source: the factors of each dim before.
        target: the factors of each dim after.
        sizes: size of each factor.
        whole: factors of one side only; their elements are reordered against the other side.
    """

    source: Dims
    target: Dims
    sizes: dict[str, int]
    whole: frozenset[str]


def refine(source: Sequence[int], target: Sequence[int]) -> Refinement:
    """Split two shapes of the same number of elements, not zero, into common factors.

    Both shapes are cut where their leading products agree. In each such group the common divisors of the outermost
    dims, then those of the innermost dims, are shared factors. What is left does not correspond dim by dim ([2, 3]
    against [3, 2]) and is split into whole factors of one side.

        [6, 4], [24]    -> ([a, b]) -> ([a b])
        [6, 4], [4, 6]  -> ([a b, c d]) -> ([a e, f d]) whole={b, c, e, f}
    """
    sizes: list[int] = []
    shared: set[int] = set()
    dims: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))

    def add(size: int, *places: tuple[int, int]) -> None:
        for side, dim in places:
            dims[side][dim].append(len(sizes))
        if len(places) == 2:
            shared.add(len(sizes))
        sizes.append(size)

    for before, after in _groups(source, target):
        heads = list(_common(before, after, 0))
        tails = list(_common(before, after, -1))
        for size, d, e in heads:
            add(size, (0, d), (1, e))
        for side, rest in enumerate((before, after)):
            for dim, size in rest:
                add(size, (side, dim))
        for size, d, e in reversed(tails):
            add(size, (0, d), (1, e))

    order = [token for side in dims for dim in sorted(side) for token in side[dim]]
    names = dict(zip(dict.fromkeys(order), letters(len(sizes)), strict=True))
    return Refinement(
        source=tuple(tuple(names[token] for token in dims[0][d]) for d in range(len(source))),
        target=tuple(tuple(names[token] for token in dims[1][d]) for d in range(len(target))),
        sizes={name: sizes[token] for token, name in names.items()},
        whole=frozenset(name for token, name in names.items() if token not in shared),
    )


def _groups(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[list[_Part], list[_Part]]]:
    """Cut both shapes wherever the products of the dims so far agree; dims of size 1 are left out."""
    left = [[dim, size] for dim, size in enumerate(source) if size != 1]
    right = [[dim, size] for dim, size in enumerate(target) if size != 1]
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        while (done := math.prod(p[1] for p in before)) != (wanted := math.prod(p[1] for p in after)):
            if done < wanted:
                before.append(left.pop(0))
            else:
                after.append(right.pop(0))
        yield before, after


def _common(before: list[_Part], after: list[_Part], end: int) -> Iterator[tuple[int, int, int]]:
    """Divide out the common divisors of the dims at one end: (size, dim before, dim after) of each."""
    while before and after and (size := math.gcd(before[end][1], after[end][1])) > 1:
        yield size, before[end][0], after[end][0]
        for side in (before, after):
            side[end][1] //= size
            if side[end][1] == 1:
                side.pop(end)
