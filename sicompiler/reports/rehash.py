"""What Step Rehash did, told to people: one row a call of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.plan import RehashPlan
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
    """

    pipeline: str
    component: str
    plan: RehashPlan | None
    evaluations: tuple[Evaluation, ...]

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
        if self.plan is not None:
            lines.append(summary(self.plan))
        rows = [
            (
                str(e.step),
                str(e.branch),
                "full" if e.prediction is None else "skip",
                e.reason if e.prediction is None else _told(e),
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
    verified = "not verified"
    if plan.verified is not None:
        v = plan.verified
        verified = (
            f"worst of {v.runs} held-out runs: relative error {v.rel_error:.2g}, PSNR {v.psnr:.1f} dB "
            f"(another run is within with probability >= {v.confidence:.0%})"
        )
    return (
        f"plan: {len(plan.full)} of {plan.evaluations} evaluations in full, {plan.speedup:.2f} times as fast, "
        f"predicted relative error {plan.predicted_error:.2g}, cut at {', '.join(plan.cut_names)}, "
        f"at most {format_bytes(plan.snapshots_bytes)} of features\n{verified}"
    )


def _told(evaluation: Evaluation) -> str:
    assert evaluation.prediction is not None
    pairs = zip(evaluation.prediction.weights, evaluation.prediction.sources, strict=True)
    return " ".join(f"{weight:+.3g}*[{source}]" for weight, source in pairs)
