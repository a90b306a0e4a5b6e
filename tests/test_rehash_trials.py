"""Plans are tried before one is chosen: what holding features really costs decides, not what was hoped."""

from __future__ import annotations

from typing import Any

import pytest

import sicompiler
from sicompiler import RehashPlan
from sicompiler.adapters.component import ComponentState
from sicompiler.adapters.subgraph import Part
from tests.mini_pipeline import mini
from tests.mini_rehash import call_list, plan_of, rehashed, skipping_is_fast, told_clock

pytestmark = pytest.mark.usefixtures("cached")

WHOLE, SKIP = 4.0, 1.0


def _learning(part: Part) -> bool:
    """Whether it runs while learning: beside the features of all cuts, or looked at."""
    return part.beside_bytes > 0 or part.snapshots == 0


def _calibrated(**wanted: Any) -> RehashPlan:
    pipe = rehashed(mini(), calls=call_list(3), **wanted)
    plan = sicompiler.rehash_report(pipe).plan
    assert plan is not None
    return plan


def test_times_of_a_plan_are_those_of_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning saw evaluations that are skipped take a second, and with features held beside them they take two."""

    def seconds(part: Part | None) -> float:
        return WHOLE if part is None or part.kind == "full" else SKIP if _learning(part) else 2 * SKIP

    told_clock(monkeypatch, seconds)
    plan = _calibrated(speedup=1.3)
    assert plan.order > 0, "it holds features while it skips"
    assert (plan.whole_seconds, plan.full_seconds, plan.skip_seconds) == (WHOLE, WHOLE, 2 * SKIP)
    assert plan.speedup >= 1.3


def test_plans_that_are_slow_in_the_budget_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding several features is slower here than skipping nothing, and plans that hold one are found."""

    def seconds(part: Part | None) -> float:
        if part is None:
            return WHOLE
        slow = part.beside_bytes == 0 and part.snapshots >= 2
        return {"full": WHOLE, "skip": SKIP}[part.kind] * (10 if slow else 1)

    told_clock(monkeypatch, seconds)
    plan = _calibrated(speedup=1.5)
    assert plan.full_snapshots < 2
    assert plan.skip_snapshots < 2
    assert plan.speedup >= 1.5
    within = _calibrated(rel_error=0.5, held_out=1)
    assert within.speedup > 1
    assert within.full_snapshots < 2


def test_plans_whose_features_leave_no_room_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    told_clock(monkeypatch, skipping_is_fast)
    part_for = ComponentState.part_for

    def narrow(self: ComponentState, part: Part, *args: Any, **kwargs: Any) -> Any:
        if part.beside_bytes == 0 and part.snapshots >= 2:
            raise sicompiler.OverBudget("no room", budget_bytes=1, floor_bytes=2, culprit="a feature")
        return part_for(self, part, *args, **kwargs)

    monkeypatch.setattr(ComponentState, "part_for", narrow)
    assert _calibrated(speedup=1.5).full_snapshots < 2
    assert _calibrated(rel_error=0.5, held_out=1).full_snapshots < 2


def test_a_target_that_only_predictions_reach_names_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(part: Part | None) -> float:
        if part is None:
            return WHOLE
        return {"full": WHOLE, "skip": SKIP}[part.kind] * (1 if part.beside_bytes > 0 else 10)

    told_clock(monkeypatch, seconds)
    with pytest.raises(sicompiler.BadInput, match=r"plans that were tried the fastest is measured at speedup=0\.\d"):
        _calibrated(speedup=2.0)
    with pytest.raises(sicompiler.BadInput, match="no plan that skips is faster than running in full"):
        _calibrated(rel_error=0.9, held_out=1)


def test_a_speed_is_met_without_held_out_runs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told_clock(monkeypatch, skipping_is_fast)
    pipe = rehashed(mini(), calls=call_list(2), speedup=1.5)
    pipe(**call_list(1)[0])
    plan = plan_of(pipe)
    assert not plan.certified
    assert plan.speedup >= 1.5
