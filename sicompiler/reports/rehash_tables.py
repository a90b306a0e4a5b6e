"""A rehash plan told to people and to machines: its summary, one row an evaluation, and what else could be had."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sicompiler.planners.skip_schedule import Prediction
from sicompiler.rehash.plan import FrontierPoint, Other, RehashPlan, Verified
from sicompiler.reports.summary import pairs, table
from sicompiler.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType


def held_bytes(plan: RehashPlan, step: int) -> int:
    """Bytes of features while an evaluation runs: those held, and those it makes or is given."""
    prediction, held = plan.steps[step], plan.branches * len(plan.held_before(step))
    if prediction is None:
        return (held + plan.branches) * plan.snapshot_bytes
    return (held + (prediction.weights != (1.0,))) * plan.snapshot_bytes  # one held feature is given as it is


def plan_json(plan: RehashPlan) -> dict[str, Any]:
    """What `sicompiler rehash show --json` prints; fields are explained in docs/command-line.md."""
    return {
        "pipeline": plan.pipeline,
        "component": plan.component,
        "scheduler": plan.scheduler,
        "strategy": plan.strategy,
        "evaluations": plan.evaluations,
        "full": len(plan.full),
        "speedup": plan.speedup,
        "loop_speedup": plan.loop_speedup,
        "predicted_error": plan.predicted_error if plan.checked else None,
        "predicted_frames_error": plan.frames_error,
        "checked_calls": plan.checked,
        "verified": None if plan.verified is None else _verified_json(plan.verified),
        "cut_names": list(plan.cut_names),
        "calls_per_step": plan.branches,
        "feature_bytes": plan.snapshot_bytes,
        "features_bytes": plan.snapshots_bytes,
        "whole_seconds": plan.whole_seconds,
        "full_seconds": plan.full_seconds,
        "skip_seconds": plan.skip_seconds,
        "step_seconds": plan.step_seconds,
        "outside_seconds": plan.outside_seconds,
        "steps": [_step_json(plan, step, prediction) for step, prediction in enumerate(plan.steps)],
    }


def _verified_json(found: Verified) -> dict[str, Any]:
    return _finite(asdict(found)) | {"others": [_finite(asdict(other)) for other in found.others]}


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, which is the PSNR of equal frames."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def _step_json(plan: RehashPlan, step: int, prediction: Prediction | None) -> dict[str, Any]:
    check = plan.checks[step]
    return {
        "step": step,
        "ran": "full" if prediction is None else "skip",
        "sources": [] if prediction is None else list(prediction.sources),
        "weights": [] if prediction is None else list(prediction.weights),
        "held": list(plan.held_before(step)),
        "held_bytes": held_bytes(plan, step),
        "guard_bound": None if check is None else check.bound,
    }


def plan_tables(plan: RehashPlan) -> list[RenderableType]:
    """A plan as rich tables: totals, then one row an evaluation."""
    calls = "one call each" if plan.branches == 1 else f"{plan.branches} calls each"
    rows = [
        ("evaluations", f"{len(plan.full)} of {plan.evaluations} in full, {calls}, {plan.strategy}"),
        ("speed-up", f"{plan.speedup:.2f} of a whole call, {plan.loop_speedup:.2f} of its denoising loop, expected"),
        (
            "one call",
            f"{format_seconds(plan.whole_seconds)} untouched by rehash, {format_seconds(plan.full_seconds)} in full, "
            f"{format_seconds(plan.skip_seconds)} from the cut; "
            f"{format_seconds(plan.step_seconds)} of a step is spent elsewhere",
        ),
        ("error", predicted(plan)),
        ("verified", verified(plan)),
        *((other.method, _told_other(other)) for other in (plan.verified.others if plan.verified else ())),
        ("cut", ", ".join(plan.cut_names)),
        (
            "features",
            f"{format_bytes(plan.snapshot_bytes)} each, at most {format_bytes(plan.snapshots_bytes)} at a time",
        ),
        ("scheduler", plan.scheduler),
    ]
    steps = [
        (
            str(step),
            "full" if prediction is None else "skip",
            told(prediction),
            " ".join(map(str, plan.held_before(step))),
            format_bytes(held_bytes(plan, step)),
            "" if (check := plan.checks[step]) is None else f"{check.bound:.2g}",
        )
        for step, prediction in enumerate(plan.steps)
    ]
    columns = ("evaluation>", "runs", "feature from", "held of", "features>", "guard stops above>")
    return [pairs(f"rehash plan of {plan.pipeline}, {plan.component}", rows), table("", columns, steps)]


def told(prediction: Prediction | None) -> str:
    """Where a feature comes from: `-0.5*[2] +1.5*[4]`; nothing where it is made."""
    if prediction is None:
        return ""
    pairs_of = zip(prediction.weights, prediction.sources, strict=True)
    return " ".join(f"{weight:+.3g}*[{source}]" for weight, source in pairs_of)


def predicted(plan: RehashPlan) -> str:
    """What error is to be expected, from calls that the plan had not learned from."""
    if not plan.checked:
        return "error unknown: it was checked on no call"
    frames = "" if plan.frames_error is None else f" of the frames {plan.frames_error:.2g},"
    latents = f"of the final latents {plan.predicted_error:.2g}"
    return f"predicted relative error{frames} {latents} (median of {plan.checked} calls)"


def verified(plan: RehashPlan) -> str:
    """What held-out runs showed, in one line."""
    found = plan.verified
    if found is None:
        return "not verified"
    return (
        f"worst of {found.runs} held-out runs: relative error {found.rel_error:.2g}, PSNR {found.psnr:.1f} dB "
        f"(another run is within with probability >= {found.confidence:.0%})"
    )


def _told_other(other: Other) -> str:
    return f"{other.full} evaluations on the same runs: relative error {other.rel_error:.2g}, PSNR {other.psnr:.1f} dB"


def points_json(plan: RehashPlan) -> list[dict[str, Any]]:
    """What `sicompiler rehash frontier --json` prints: one object a point, fastest first."""
    return [{**asdict(point), "cut_names": list(point.cut_names), "chosen": own} for point, own in _points(plan)]


def points_table(plan: RehashPlan) -> RenderableType:
    """What could be had, fastest first; the plan itself is marked."""
    rows = [
        (
            "this plan" if own else "",
            f"{point.full} of {plan.evaluations}",
            f"{point.speedup:.2f}",
            f"{point.predicted_error:.2g}",
            format_bytes(point.snapshots_bytes),
            ", ".join(point.cut_names),
        )
        for point, own in _points(plan)
    ]
    columns = ("", "in full>", "speed-up>", "estimated error>", "features>", "cut")
    return table(f"what could be had of {plan.pipeline}, {plan.component}", columns, rows)


def _agree(faster: FrontierPoint, slower: FrontierPoint) -> bool:
    return faster.speedup > slower.speedup and faster.predicted_error > slower.predicted_error


def _points(plan: RehashPlan) -> list[tuple[FrontierPoint, bool]]:
    """The frontier with the plan itself, whose error was measured; estimates that it belies are left out."""
    own = FrontierPoint(len(plan.full), plan.speedup, plan.predicted_error, plan.cut_names, plan.snapshots_bytes)
    others = [p for p in plan.frontier() if _agree(p, own) or _agree(own, p)]
    return sorted([*((point, False) for point in others), (own, True)], key=lambda row: -row[0].speedup)
