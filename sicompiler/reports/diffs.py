"""What differs: two plans field by field and region by region, two dumps line by line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sicompiler.plan import Plan, RegionPlan


@dataclass(frozen=True)
class PlanDiff:
    """What differs from plan `a` to plan `b`.

    Attributes:
        fields: name -> (value in a, value in b) of every field but the regions that differs.
        removed: regions only in a.
        added: regions only in b.
        changed: name of the region -> its fields that differ.
    """

    fields: Mapping[str, tuple[Any, Any]]
    removed: tuple[RegionPlan, ...]
    added: tuple[RegionPlan, ...]
    changed: Mapping[str, Mapping[str, tuple[Any, Any]]]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.fields or self.removed or self.added or self.changed)

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "same": self.same,
            "fields": {name: {"a": a, "b": b} for name, (a, b) in self.fields.items()},
            "removed": [asdict(region) for region in self.removed],
            "added": [asdict(region) for region in self.added],
            "changed": {
                region: {name: {"a": a, "b": b} for name, (a, b) in fields.items()}
                for region, fields in self.changed.items()
            },
        }


def region_name(region: RegionPlan) -> str:
    """What a region is called in a diff: its operators."""
    return f"{region.first} .. {region.last}"


def plan_diff(a: Plan, b: Plan) -> PlanDiff:
    """Compare two plans. The seconds that making them took do not count."""
    left, right = asdict(a), asdict(b)
    for data in (left, right):
        for name in ("regions", "timings"):
            data.pop(name)
    regions_a, regions_b = ({region_name(r): r for r in plan.regions} for plan in (a, b))
    common = [name for name in regions_a if name in regions_b]
    changed = {name: _differences(asdict(regions_a[name]), asdict(regions_b[name])) for name in common}
    return PlanDiff(
        _differences(left, right),
        tuple(region for name, region in regions_a.items() if name not in regions_b),
        tuple(region for name, region in regions_b.items() if name not in regions_a),
        {name: fields for name, fields in changed.items() if fields},
    )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def text_diff(a: str, b: str, names: Sequence[str]) -> str:
    """The unified diff of two texts; empty where they are equal."""
    lines = difflib.unified_diff(a.splitlines(), b.splitlines(), names[0], names[1], lineterm="")
    return "".join(f"{line}\n" for line in lines)
