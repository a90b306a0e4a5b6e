"""Sets of names as bits of a number: a walk asks hundreds of namespaces for thousands of names, over and over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Names:
    """The names that code of one model can read, each with a bit of its own."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._order: list[str] = []
        self._sets: dict[frozenset[str], int] = {}

    def __len__(self) -> int:
        """How many names there are by now: there are only ever more."""
        return len(self._order)

    def bits(self, names: Iterable[str]) -> int:
        """A set of names as a number."""
        known = self._sets.get(names) if type(names) is frozenset else None
        if known is not None:
            return known
        found = 0
        for name in names:
            bit = self._bits.get(name)
            if bit is None:
                bit = self._bits[name] = 1 << len(self._order)
                self._order.append(name)
            found |= bit
        if type(names) is frozenset:
            self._sets[names] = found
        return found

    def of(self, bits: int) -> Iterator[str]:
        """The names in a number."""
        while bits:
            low = bits & -bits
            bits ^= low
            yield self._order[low.bit_length() - 1]

    def among(self, keys: set[str], since: int = 0) -> set[str]:
        """The names that are among some keys.

        Args:
            keys: where to look.
            since: how many of the names are not, as they were looked for before.
        """
        newer = self._order[since:]
        return keys.intersection(newer) if len(newer) < len(keys) else keys & self._bits.keys()
