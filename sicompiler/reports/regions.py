"""The regions of a plan, told once for all that are the same: a block of a model is sliced as the one before it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sicompiler.plan import Plan, RegionPlan

_NUMBER = re.compile(r"\d+")
_SUFFIX = re.compile(r"_\d+$")  # torch numbers the calls of an operator


@dataclass(frozen=True)
class RegionRow:
    """Regions that are the same in different blocks.

    Attributes:
        regions: in schedule order.
        peak_bytes: the highest of them, weights included.
    """

    regions: tuple[RegionPlan, ...]
    peak_bytes: int

    @property
    def first(self) -> RegionPlan:
        """The first of them."""
        return self.regions[0]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.regions)

    @property
    def times(self) -> str:
        """How many there are, where it is several: `x 16`."""
        return f"x {self.count}" if self.count > 1 else ""

    @property
    def module(self) -> str:
        """The path they share, with the numbers in which they differ as `*`."""
        return shared_path([region.module for region in self.regions])


def region_rows(plan: Plan) -> list[RegionRow]:
    """The regions of a plan, those of repeated blocks together, in the order in which each kind comes first.

    They are the same where the same operators, of modules whose paths differ in numbers alone, are sliced along an axis
    of the same name and size into slices of the same length.
    """
    found: dict[object, list[RegionPlan]] = {}
    for region in plan.regions:
        operators = (_SUFFIX.sub("", region.first), _SUFFIX.sub("", region.last), region.operators)
        key = (region.axis, region.size, region.slice_length, *operators, family(region.module))
        found.setdefault(key, []).append(region)
    return [RegionRow(tuple(same), max(map(plan.region_peak_bytes, same))) for same in found.values()]


def family(text: str) -> str:
    """A name or a path without its numbers: what equal places of repeated blocks have in common."""
    return _NUMBER.sub("*", text)


def shared_path(paths: Sequence[str]) -> str:
    """Paths that differ in numbers alone as one: `blocks.*.attn` of `blocks.0.attn` and `blocks.1.attn`."""
    pieces = [_NUMBER.split(path) for path in paths]
    numbers = [_NUMBER.findall(path) for path in paths]
    merged = [each[0] if len(set(each)) == 1 else "*" for each in zip(*numbers, strict=True)]
    return "".join(text + number for text, number in zip(pieces[0], [*merged, ""], strict=True))
