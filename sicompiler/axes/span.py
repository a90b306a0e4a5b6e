"""Spans: which entries of an axis one slice of a loop holds, halo included.

A loop cuts an axis of `size` units into slices [a, b) of units. A value that carries the axis with `inner` entries a
unit holds, for its own part alone, the entries [a * inner, b * inner). What is read through a window (a convolution)
holds more on both sides: the halo, which ends at the true borders of the value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """For the slice [a, b) of the loop, the entries [a * inner - lo, b * inner + hi), clipped to [0, limit).

    Attributes:
        inner: entries a unit of the loop.
        lo, hi: entries more before and behind; negative ones are entries less.
        limit: end of the axis in the value, or an earlier entry behind which nothing is read.
    """

    inner: int
    lo: int
    hi: int
    limit: int

    def hull(self, other: Span | None) -> Span:
        """The smallest span that holds both."""
        if other is None:
            return self
        assert self.inner == other.inner, (self, other)
        return Span(self.inner, max(self.lo, other.lo), max(self.hi, other.hi), max(self.limit, other.limit))

    def times(self, factor: int) -> Span:
        """The span in finer entries, `factor` of them for each of these."""
        return Span(self.inner * factor, self.lo * factor, self.hi * factor, self.limit * factor)

    def over(self, factor: int) -> Span:
        """The smallest span of groups of `factor` entries that holds this one."""
        return Span(self.inner // factor, *(-(-n // factor) for n in (self.lo, self.hi, self.limit)))

    def is_own_part(self, entries: int) -> bool:
        """Whether the slices hold the axis of so many entries without overlap."""
        return self.lo == self.hi == 0 and self.limit >= entries

    def bounds(self, start: int, stop: int) -> tuple[int, int]:
        """First entry, and the entry behind the last, for the slice [start, stop)."""
        first = min(max(start * self.inner - self.lo, 0), self.limit)
        return first, max(first, min(stop * self.inner + self.hi, self.limit))

    def longest(self, size: int, lengths: Floats) -> Floats:
        """Most entries that any slice holds, for each slice length of a loop over `size` units.

        As a function of the number of the slice the count is concave: it is highest where the halo is not clipped any
        more, or next to it.
        """
        count = np.ceil(size / lengths)
        first = np.ceil(self.lo / (lengths * self.inner))  # from here on the halo before is whole
        last = np.floor((self.limit - self.hi) / (lengths * self.inner)) - 1  # up to here the halo behind is
        tried = (0, count - 1, count - 2, first, first - 1, last, last + 1)
        return self._most(size, lengths, count, tried, np.maximum)

    def shortest(self, size: int, lengths: Floats) -> Floats:
        """Fewest entries that any slice holds: those of the first, of the last or of the last but one."""
        count = np.ceil(size / lengths)
        return self._most(size, lengths, count, (0, count - 1, count - 2), np.minimum)

    def total(self, size: int, lengths: Floats) -> Floats:
        """Entries that all slices hold together, counted from above."""
        count = np.ceil(size / lengths)
        whole = size * self.inner + count * (max(self.lo, 0) + max(self.hi, 0))
        return np.asarray(np.minimum(whole, count * self.longest(size, lengths)))

    def _most(
        self,
        size: int,
        lengths: Floats,
        count: Floats,
        numbers: tuple[Floats | int, ...],
        choose: Callable[[Floats, Floats], Floats],
    ) -> Floats:
        found: Floats | None = None
        for number in numbers:
            j = np.clip(number, 0, count - 1)
            first = np.clip(j * lengths * self.inner - self.lo, 0, self.limit)
            stop = np.minimum((j + 1) * lengths, size)
            held = np.maximum(np.minimum(stop * self.inner + self.hi, self.limit) - first, 0)
            found = held if found is None else choose(found, held)
        assert found is not None
        return found

    def __str__(self) -> str:
        return f"[a*{self.inner}-{self.lo}, b*{self.inner}+{self.hi}) of {self.limit}"
