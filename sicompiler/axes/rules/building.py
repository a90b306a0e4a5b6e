"""Shared vocabulary of the axis rules: names for factors, and maps written down as labels of dims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase

from sicompiler.axes.factor_map import FactorMap, Window
from sicompiler.axes.registry import OpCall, TensorSpec

Labels = Sequence[str]  # one string per dim, the factors of the dim separated by spaces


def letters(count: int, avoid: Iterable[str] = ()) -> list[str]:
    """The first `count` factor names a, b, c, ... that are not in `avoid`."""
    taken = set(avoid)
    names = [name for name in ascii_lowercase if name not in taken]
    names += [f"a{number}" for number in range(count - len(names))]
    return names[:count]


def wrap(dim: int, rank: int) -> int:
    """A dim counted from the end as a dim counted from the front; rank 0 counts as rank 1."""
    return dim % max(rank, 1)


def wrap_all(dims: int | Sequence[int] | None, rank: int) -> set[int]:
    """The dims a reduction runs over, counted from the front; none given means all."""
    if isinstance(dims, int):
        dims = [dims]
    return {wrap(dim, rank) for dim in dims} if dims else set(range(rank))


def aligned(names: Labels, spec: TensorSpec) -> Labels:
    """The names of the last dims, as many as the tensor has: how broadcasting aligns."""
    return names[len(names) - len(spec.shape) :]


def without_dim(call: OpCall, rank: int) -> tuple[list[str], list[str]]:
    """The names of dims of which the one that `dim` says is called s, and those of the others alone."""
    names, dim = letters(rank, avoid="s"), wrap(call["dim"], rank)
    rest = [name for d, name in enumerate(names) if d != dim]
    names[dim] = "s"
    return names, rest


def spread(value: int | Sequence[int], count: int) -> list[int]:
    """An argument such as a kernel size, given once or once per dim, as one number per dim."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def described(  # noqa: PLR0913  # a keyword for each kind of factor, so that a rule reads as its printed line
    call: OpCall,
    operands: Sequence[Labels],
    results: Sequence[Labels],
    *,
    sizes: Mapping[str, int] | None = None,
    whole: Iterable[str] = (),
    reduce: Iterable[str] = (),
    stats: Iterable[str] = (),
    merge: Iterable[str] = (),
    windows: Mapping[str, Window] | None = None,
) -> FactorMap:
    """Build the map of a call from the labels of its dims, reading the sizes off the call.

    A dim of size 1 loses its factors, whatever its label: it broadcasts or has nothing to slice. So a rule labels
    dims as if nothing broadcast.

    Args:
        call: the call.
        operands: the labels of each operand, in the order of `call.operands`.
        results: the labels of each result.
        sizes: sizes of the factors that only occur in dims of several factors, and of windows (the result's size).
        whole: factors of kind WHOLE; those that turn out to be of size 1 are dropped, as in the next three.
        reduce: factors of kind REDUCE.
        stats: factors of kind STATS.
        merge: factors of kind MERGE.
        windows: factors of kind WINDOW.
    """
    given, windowed = dict(sizes or {}), dict(windows or {})
    found: dict[str, int] = {}
    tensors = [*zip(operands, call.operands, strict=True), *zip(results, call.results, strict=True)]
    for labels, spec in tensors:
        for label, size in zip(labels, spec.shape, strict=True):
            names = label.split()
            for name in names:
                if name in given:
                    found[name] = given[name]
                elif len(names) == 1 and found.get(name, 1) == 1:
                    found[name] = size

    def clean(labels: Labels, spec: TensorSpec) -> list[tuple[str, ...]]:
        dims = []
        for label, size in zip(labels, spec.shape, strict=True):
            names = tuple(name for name in label.split() if name in windowed or found[name] != 1)
            if size == 1 and not any(name in windowed for name in names):
                names = ()
            carried = math.prod(found[name] for name in names)
            assert carried == size or any(name in windowed for name in names), (str(call.target), label, size)
            dims.append(names)
        return dims

    tidy = [clean(labels, spec) for labels, spec in tensors]
    used = {name for dims in tidy for names in dims for name in names}
    reduce, stats, merge, whole = tuple(reduce), tuple(stats), tuple(merge), tuple(whole)
    kinds = (*reduce, *stats, *merge, *whole)
    order = [*(name for name in found if name not in kinds), *kinds]  # kinds print in the order the rule lists them
    return FactorMap.of(
        tidy[: len(operands)],
        tidy[len(operands) :],
        {name: found[name] for name in order if name in used},
        whole=[name for name in whole if name in used],
        reduce=[name for name in reduce if name in used],
        stats=[name for name in stats if name in used],
        merge=[name for name in merge if name in used],
        windows={name: window for name, window in windowed.items() if name in used},
    )


def opaque(call: OpCall) -> FactorMap:
    """The map that lets nothing be sliced: every dim of every tensor is a whole factor of its own."""
    shapes = [spec.shape for spec in (*call.operands, *call.results)]
    names = iter(letters(sum(len(shape) for shape in shapes)))
    labels = [[next(names) for _ in shape] for shape in shapes]
    count = len(call.operands)
    every = [name for dims in labels for name in dims]
    return described(call, labels[:count], labels[count:], whole=every)
