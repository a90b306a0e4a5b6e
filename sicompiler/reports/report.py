"""What was planned for a compiled model, printable, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from sicompiler.capture import Program
from sicompiler.errors import BadInput
from sicompiler.plan import Plan
from sicompiler.replay.run import traced_run
from sicompiler.replay.snapshot import write_snapshot
from sicompiler.reports.page import page
from sicompiler.reports.summary import plain, plan_tables, summary
from sicompiler.units import format_bytes


@dataclass(frozen=True)
class Report:
    """The plans of a compiled model. `print(report)` shows totals first, then one row a region.

    Attributes:
        model: its name.
        budget_bytes: what was asked for.
        plans: one per input shape, oldest first.
        programs: the rewritten program of each plan.
        untouched: what the model peaks at as it is, by plan; None where nobody has looked.
    """

    model: str
    budget_bytes: int
    plans: tuple[Plan, ...]
    programs: Sequence[Program] = ()
    untouched: tuple[int | None, ...] = ()

    @property
    def plan(self) -> Plan | None:
        """The newest plan; None before the first call."""
        return self.plans[-1] if self.plans else None

    def __str__(self) -> str:
        if not self.plans:
            return (
                f"{self.model}: nothing is planned yet within {format_bytes(self.budget_bytes)}; the first call plans\n"
            )
        shapes = len(self.plans)
        head = "" if shapes == 1 else f"{shapes} input shapes are planned, oldest first\n\n"
        return head + "\n".join(plain(plan_tables(*found)) for found in self._looked_at)

    @property
    def _looked_at(self) -> list[tuple[Plan, int | None]]:
        """Every plan, with what the model peaks at as it is."""
        return list(zip_longest(self.plans, self.untouched))

    def to_json(self) -> str:
        """Every plan, oldest first, as `sicompiler plan --json` prints one."""
        found = {
            "model": self.model,
            "budget_bytes": self.budget_bytes,
            "plans": [summary(*found) for found in self._looked_at],
        }
        return json.dumps(found, indent=2)

    def save_snapshot(self, path: str | Path) -> Path:
        """Write what the allocator does in a run of each plan, as a memory snapshot that torch's viewer opens.

        Each plan is a device of its own in it, oldest first.

        Args:
            path: of the file to write, a pickle.

        Raises:
            BadInput: nothing is planned yet, the file can't be written, or the device's allocator keeps no segments.
        """
        if not self.plans:
            raise BadInput(f"{self.model}: nothing is planned yet, so there is nothing to show; call the model once")
        return write_snapshot(path, [traced_run(*pair) for pair in zip(self.programs, self.plans, strict=True)])

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page: totals, live bytes over the run, one row a region.

        Args:
            path: of the file to write.
        """
        target = Path(path)
        target.write_text(page(self.model, self.budget_bytes, self._looked_at, self.programs), encoding="utf-8")
        return target
