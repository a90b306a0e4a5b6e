"""What Step Rehash did, told to people: one row a call of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.plan import RehashPlan
from sicompiler.reports.rehash_tables import predicted, told, verified
from sicompiler.reports.summary import plain, table
from sicompiler.units import format_bytes, format_seconds


@dataclass(frozen=True)
class RehashReport:
    """The newest denoising loop of a pipeline.

    Attributes:
        pipeline: its class.
        component: the denoiser.
        plan: by which it ran; None while nothing is learned yet.
        evaluations: every call of the denoiser, in order.
        why: nothing could be skipped in it; empty where a plan ran.
    """

    pipeline: str
    component: str
    plan: RehashPlan | None
    evaluations: tuple[Evaluation, ...]
    why: str = ""

    @property
    def full(self) -> int:
        """Calls that ran in full."""
        return sum(e.prediction is None for e in self.evaluations)

    @property
    def skipped(self) -> int:
        """Calls that started at the cut."""
        return len(self.evaluations) - self.full

    def __str__(self) -> str:
        lines = [f"{self.pipeline}, {self.component}: {self.full} calls in full, {self.skipped} skipped"]
        if self.why:
            lines.append(f"nothing is skipped: {self.why}")
        elif self.plan is not None:
            lines.append(summary(self.plan))
        rows = [
            (
                str(e.step),
                str(e.branch),
                "full" if e.prediction is None else "skip",
                ("" if e.reason == self.why else e.reason) if e.prediction is None else told(e.prediction),
                "" if e.guard_error is None else f"{e.guard_error:.2g}",
                format_bytes(e.held_bytes),
                format_seconds(e.seconds),
            )
            for e in self.evaluations
        ]
        columns = ("step>", "call>", "ran", "feature from", "error by guard>", "held>", "time>")
        return "\n".join([*lines, plain([table("", columns, rows)])])


def summary(plan: RehashPlan) -> str:
    """A plan in two lines."""
    return (
        f"plan: {len(plan.full)} of {plan.evaluations} evaluations in full, {plan.speedup:.2f} times as fast, "
        f"{predicted(plan)}, cut at {', '.join(plan.cut_names)}, "
        f"at most {format_bytes(plan.snapshots_bytes)} of features\n{verified(plan)}"
    )
