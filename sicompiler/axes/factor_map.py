"""Factor maps: how the dims of an operator's operands and results are tied together.

Every dim of every operand and result is an ordered list of *factors*, major to minor. A factor that may be
sliced freely says: running the operator on the slices and putting the results together gives the whole
result. The notation follows Shardy's `op_sharding_rule` (openxla/shardy, sdy dialect), extended by windows
and statistics. The printed form is also the test of a rule:

    linear       ([n, i], [o, i], [o]) -> ([n, o]) reduce={i}
    group_norm   ([n, g c, h], [g c], [g c]) -> ([n, g c, h]) stats={c, h}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", int, npt.NDArray[np.float64])

Dim = tuple[str, ...]  # the factors of one dim, major to minor; () is a dim of size 1
Dims = tuple[Dim, ...]  # one tensor


class FactorKind(StrEnum):
    """What slicing a factor takes."""

    FREE = "free"  # slicing commutes, nothing else to do
    REDUCE = "reduce"  # in operands, not in the result: partial results add up
    WHOLE = "whole"  # must not be sliced here
    STATS = "stats"  # the operator normalises over it: two passes
    WINDOW = "window"  # an output interval needs a wider input interval
    MERGE = "merge"  # partial results merge by the operator's own associative rule (statistics)


@dataclass(frozen=True)
class Window:
    """Output [a, b) needs input [a*stride - pad_lo, (b-1)*stride + dilation*(kernel-1) - pad_lo + 1)."""

    kernel: int
    stride: int = 1
    pad_lo: int = 0
    pad_hi: int = 0
    dilation: int = 1

    @property
    def pads(self) -> bool:
        """Whether the operator adds entries at a border."""
        return self.pad_lo > 0 or self.pad_hi > 0

    def reads(self, count: T) -> T:
        """How many entries, padding included, that many entries of the result are made of."""
        return (count - 1) * self.stride + (self.dilation * (self.kernel - 1) + 1)

    def __str__(self) -> str:
        pads = f"p{self.pad_lo}" if self.pad_lo == self.pad_hi else f"p{self.pad_lo},{self.pad_hi}"
        tail = f" d{self.dilation}" if self.dilation != 1 else ""
        return f"k{self.kernel} s{self.stride} {pads}{tail}"


@dataclass(frozen=True)
class Slicing:
    """Where an axis sits in a tensor: dim `dim` is `outer x size x inner`, and the middle part is sliced.

    The frames of a dim merged from (batch, frames) with batch 2 and 14 frames are `Slicing(0, 2, 14, 1)`;
    its batch is `Slicing(0, 1, 2, 14)`.
    """

    dim: int
    outer: int
    size: int
    inner: int

    def __str__(self) -> str:
        if self.outer == self.inner == 1:
            return f"dim {self.dim} ({self.size})"
        return f"dim {self.dim} ({self.outer}x[{self.size}]x{self.inner})"


@dataclass(frozen=True)
class FactorSlicing:
    """A slicing told relative to a factor: the factor is `outer x size x inner`, the middle part is sliced."""

    factor: str
    outer: int
    size: int
    inner: int


@dataclass(frozen=True)
class FactorMap:
    """The axis rule of one operator call.

    Attributes:
        operands: factors of each tensor operand, in schema order, tensor lists flattened.
        results: factors of each tensor result.
        sizes: size of each factor.
        kinds: kind of each factor that is not free.
        windows: the window of each factor of kind WINDOW.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: Mapping[str, int]
    kinds: Mapping[str, FactorKind]
    windows: Mapping[str, Window]

    @staticmethod
    def of(
        operands: Sequence[Sequence[Sequence[str] | str]],
        results: Sequence[Sequence[Sequence[str] | str]],
        sizes: Mapping[str, int],
        *,
        whole: Iterable[str] = (),
        reduce: Iterable[str] = (),
        stats: Iterable[str] = (),
        merge: Iterable[str] = (),
        windows: Mapping[str, Window] | None = None,
    ) -> FactorMap:
        """Build a map from strings: a dim is `"g c"` or `("g", "c")`; `""` or `()` is a dim of size 1."""

        def tensor(dims: Sequence[Sequence[str] | str]) -> Dims:
            return tuple(tuple(d.split()) if isinstance(d, str) else tuple(d) for d in dims)

        kinds = dict.fromkeys(whole, FactorKind.WHOLE) | dict.fromkeys(reduce, FactorKind.REDUCE)
        kinds |= dict.fromkeys(stats, FactorKind.STATS) | dict.fromkeys(merge, FactorKind.MERGE)
        kinds |= dict.fromkeys(windows or {}, FactorKind.WINDOW)
        return FactorMap(
            tuple(tensor(t) for t in operands),
            tuple(tensor(t) for t in results),
            MappingProxyType(dict(sizes)),
            MappingProxyType(kinds),
            MappingProxyType(dict(windows or {})),
        )

    def kind(self, factor: str) -> FactorKind:
        """The kind of a factor; FREE unless said otherwise."""
        return self.kinds.get(factor, FactorKind.FREE)

    def cut_of(self, dims: Dims, slicing: Slicing) -> FactorSlicing | None:
        """Tell a slicing of a tensor with factors `dims` relative to the factor it falls into.

        A value padded along the axis, or cut short, has more or fewer entries than `size * inner`: then the slicing has
        to fall into a dim of one factor, where nothing can be mistaken.

        Returns:
            The cut, or None where the slicing runs across the border of two factors.
        """
        before = 1
        factors = dims[slicing.dim]
        after = 1
        for name in factors:
            after *= self.sizes[name]
        for name in factors:
            size = self.sizes[name]
            after //= size
            if size > 1 and slicing.outer % before == 0 and slicing.inner % after == 0:
                outer, inner = slicing.outer // before, slicing.inner // after
                if outer * slicing.size * inner == size:
                    return FactorSlicing(name, outer, slicing.size, inner)
            before *= size
        if len(factors) == 1 and slicing.outer == 1 and slicing.size * slicing.inner != self.sizes[factors[0]]:
            return FactorSlicing(factors[0], 1, slicing.size, slicing.inner)
        return None

    def is_exact(self, cut: FactorSlicing) -> bool:
        """Whether the slices of a cut have exactly the entries of the factor."""
        return cut.outer * cut.size * cut.inner == self.sizes[cut.factor]

    def place(self, dims: Dims, cut: FactorSlicing) -> Slicing | None:
        """The slicing that `cut` makes in a tensor with factors `dims`; None where the factor is absent."""
        for position, factors in enumerate(dims):
            before = 1
            for index, name in enumerate(factors):
                if name == cut.factor:
                    after = 1
                    for later in factors[index + 1 :]:
                        after *= self.sizes[later]
                    return Slicing(position, before * cut.outer, cut.size, cut.inner * after)
                before *= self.sizes[name]
        return None

    def __str__(self) -> str:
        def tensor(dims: Dims) -> str:
            return "[" + ", ".join(" ".join(d) or "1" for d in dims) + "]"

        operands = ", ".join(map(tensor, self.operands))
        results = ", ".join(map(tensor, self.results))
        text = f"({operands}) -> ({results})"
        for kind in (FactorKind.REDUCE, FactorKind.STATS, FactorKind.MERGE, FactorKind.WHOLE):
            names = [name for name in self.sizes if self.kinds.get(name) is kind]
            if names:
                text += f" {kind}={{{', '.join(names)}}}"
        if self.windows:
            text += " window={" + ", ".join(f"{n}: {w}" for n, w in self.windows.items()) + "}"
        return text
