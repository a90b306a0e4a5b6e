"""What happened with one plan of a component, or with its untouched calls of one shape: for reports and for errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sicompiler.errors import OverBudget
from sicompiler.pipelines.reserved import Reserved
from sicompiler.pipelines.roles import Role
from sicompiler.pipelines.untouched import UntouchedCall
from sicompiler.reports.phases import PhaseRow
from sicompiler.runtime.compiled import Executable
from sicompiler.units import budget_hint, format_bytes


@dataclass
class Record:
    """What happened with one plan of a component, or with its untouched calls of one shape.

    Attributes:
        ran: the plan, or what is known of the untouched calls.
        reserved: the most that the rest of the pipeline held while it ran.
        own_weights_bytes: of the component, resident while it ran.
        measured_bytes: the highest peak measured, of the whole pipeline.
        not_measured: why its newest call was not measured, though it should have been.
        calls: how often it ran.
    """

    ran: Executable | UntouchedCall
    reserved: Reserved = field(default_factory=Reserved)
    own_weights_bytes: int = 0
    measured_bytes: int | None = None
    not_measured: str = ""
    calls: int = 0

    @property
    def compiled(self) -> Executable | None:
        """The plan, carried out; None where the component ran untouched."""
        return self.ran if isinstance(self.ran, Executable) else None

    @property
    def floor_bytes(self) -> int:
        """The smallest budget of the pipeline for these calls, with all that was resident beside them."""
        own = self.ran.floor[0] if isinstance(self.ran, Executable) else self.ran.floor_bytes
        return own + self.reserved.total_bytes

    def row(self, role: Role, label: str, budget_bytes: int) -> PhaseRow:
        """The row of a report.

        Args:
            role: what the component does.
            label: the component, and which part of it.
            budget_bytes: of the pipeline.
        """
        beside, own = self.reserved.total_bytes, self.own_weights_bytes
        resident = ({role.component: own} if own else {}) | dict(self.reserved.weights)
        row = PhaseRow(
            phase=role.phase.value,
            component=label,
            resident=tuple(resident),
            weights_bytes=own + self.reserved.weights_bytes,
            held_bytes=self.reserved.held_bytes + self.reserved.margin_bytes,
            activations_bytes=None,
            unsliced_peak_bytes=None,
            predicted_peak_bytes=None,
            floor_bytes=self.floor_bytes,
            floor_operator="",
            budget_bytes=budget_bytes,
            measured_peak_bytes=self.measured_bytes,
            calls=self.calls,
            not_measured=self.not_measured,
        )
        if isinstance(self.ran, UntouchedCall):
            return replace(row, floor_operator=self.ran.culprit, note=self.ran.reason)
        plan, untouched = self.ran.plan, self.ran.untouched.peak_bytes
        return replace(
            row,
            activations_bytes=plan.predicted_peak_bytes - plan.weights_bytes,
            untouched_peak_bytes=None if untouched is None else untouched + beside,
            unsliced_peak_bytes=plan.unsliced_peak_bytes + beside,
            predicted_peak_bytes=plan.predicted_peak_bytes + beside,
            floor_operator=self.ran.floor[1],
        )


@dataclass(frozen=True)
class Shortage:
    """A call of a component for which the budget does not suffice, whatever is moved away.

    Attributes:
        needed_bytes: of the component, with its weights and inputs.
        culprit: what sets that.
        because: why the component runs untouched; "" where it runs by a plan.
    """

    needed_bytes: int
    culprit: str
    because: str = ""

    def error(
        self, pipeline: str, role: Role, budget_bytes: int, reserved: Reserved, *, known: int, waiting: Sequence[str]
    ) -> OverBudget:
        """The error for the user.

        Args:
            pipeline: its name.
            role: what the component does.
            budget_bytes: of the pipeline.
            reserved: what can't be moved away.
            known: the smallest budget for what has run so far.
            waiting: what has not run yet, and may need more.
        """
        floor_bytes = max(known, self.needed_bytes + reserved.total_bytes)
        parts = [f"{name} {format_bytes(nbytes)}" for name, nbytes in reserved.weights]
        others = f"{format_bytes(reserved.weights_bytes)} of other weights ({', '.join(parts)})" if parts else ""
        held = f"{format_bytes(reserved.held_bytes)} that the pipeline holds"
        kept = f"{format_bytes(reserved.snapshot_bytes)} of features kept from step to step (Step Rehash)"
        kept = kept if reserved.snapshot_bytes else ""
        untouched = f"It runs untouched, and its weights stay on the device: {self.because}. " if self.because else ""
        later = f"; {', '.join(waiting)} did not run yet and may need more" if waiting else ""
        return OverBudget(
            f"{pipeline} does not fit {format_bytes(budget_bytes)} in phase {role.phase}: "
            f"{role.label} needs {format_bytes(self.needed_bytes)} at least, set by {self.culprit}, beside "
            f"{' and '.join(filter(None, (others, kept, held)))}. {untouched}"
            f"The nearest budget that works is {budget_hint(floor_bytes)}{later}",
            budget_bytes=budget_bytes,
            floor_bytes=floor_bytes,
            culprit=self.culprit,
        )
