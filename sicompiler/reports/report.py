"""What was planned for a compiled model, printable."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sicompiler.plan import Plan


@dataclass(frozen=True)
class Report:
    """The plans of a compiled model.

    Attributes:
        model: its name.
        budget_bytes: what was asked for.
        plans: one per input shape, oldest first.
    """

    model: str
    budget_bytes: int
    plans: tuple[Plan, ...]

    @property
    def plan(self) -> Plan | None:
        """The newest plan; None before the first call."""
        return self.plans[-1] if self.plans else None

    def to_json(self) -> str:
        """The newest plan as JSON."""
        return json.dumps(None) if self.plan is None else self.plan.to_json()
