"""Plans are tried before one is chosen: what holding features really costs decides, not what was hoped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import sicompiler
from sicompiler import RehashPlan
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.rehash.contest import Contest
from sicompiler.pipelines.rehash.runs import Difference, Run
from sicompiler.pipelines.rehash.trials import Trials, key_of, typical_seconds
from sicompiler.pipelines.subgraph import GraphPart
from sicompiler.planners.skip_schedule import Prediction
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.timings import Seconds, Timings
from tests.mini_pipeline import mini
from tests.mini_rehash import call_list, plan_of, rehashed, skipping_is_fast, told_clock

pytestmark = pytest.mark.usefixtures("cached")

WHOLE, SKIP = 4.0, 1.0


def _learning(part: GraphPart) -> bool:
    """Whether it runs while learning: beside the features of all cuts, or looked at."""
    return part.beside_bytes > 0 or part.snapshots == 0


def _calibrated(**wanted: Any) -> RehashPlan:
    pipe = rehashed(mini(), calls=call_list(3), **wanted)
    plan = sicompiler.rehash_report(pipe).plan
    assert plan is not None
    return plan


def test_times_of_a_plan_are_those_of_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning saw evaluations that are skipped take a second, and with features held beside them they take two."""

    def seconds(part: GraphPart | None) -> float:
        return WHOLE if part is None or part.kind == "full" else SKIP if _learning(part) else 2 * SKIP

    told_clock(monkeypatch, seconds)
    plan = _calibrated(speedup=1.3)
    assert plan.order > 0, "it holds features while it skips"
    assert (plan.whole_seconds, plan.full_seconds, plan.skip_seconds) == (WHOLE, WHOLE, 2 * SKIP)
    assert plan.speedup >= 1.3


def test_plans_that_are_slow_in_the_budget_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding several features is slower here than skipping nothing, and plans that hold one are found."""

    def seconds(part: GraphPart | None) -> float:
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
    part_for = CompiledComponent.part_for

    def narrow(self: CompiledComponent, part: GraphPart, *args: Any, **kwargs: Any) -> Any:
        if part.beside_bytes == 0 and part.snapshots >= 2:
            raise sicompiler.OverBudget("no room", budget_bytes=1, floor_bytes=2, culprit="a feature")
        return part_for(self, part, *args, **kwargs)

    monkeypatch.setattr(CompiledComponent, "part_for", narrow)
    assert _calibrated(speedup=1.5).full_snapshots < 2
    assert _calibrated(rel_error=0.5, held_out=1).full_snapshots < 2


def test_a_target_that_only_predictions_reach_names_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(part: GraphPart | None) -> float:
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


def _run(seconds: Sequence[tuple[bool, float]]) -> Run:
    """A run whose evaluations are skipped or not, and take so long."""
    last = Prediction((0,), (1.0,))
    rows = [Evaluation(n, 0, last if skipped else None, seconds=taken) for n, (skipped, taken) in enumerate(seconds)]
    return Run([], torch.zeros(1), tuple(rows), 0.0)


def test_what_else_the_machine_did_for_a_moment_does_not_count() -> None:
    rows = [(False, 4.0), (False, 4.0), (False, 40.0), (True, 1.0), (False, 6.0), (True, 1.0), (False, 6.0)]
    rows += [(True, 9.0), (True, 1.0), (False, 6.0)]
    assert typical_seconds(_run(rows), skipped=False) == pytest.approx((3 * 4.0 + 3 * 6.0) / 6)
    assert typical_seconds(_run(rows), skipped=True) == 1.0
    assert math.isnan(typical_seconds(_run(rows[:3]), skipped=True))


def test_an_evaluation_that_keeps_features_is_no_faster_than_one_that_keeps_none(half: RehashPlan) -> None:
    """The machine was busy while evaluations in full were timed beside the run of a plan."""
    timings = Timings()
    timings.measured(half, Seconds(whole=6.0, full=4.0, skip=1.0, step=0.0, outside=0.0))
    (corrected,) = timings.corrected([half])
    assert (corrected.whole_seconds, corrected.full_seconds) == (6.0, 6.0)
    assert corrected.speedup < len(half.steps) / len(half.full)
    timings.measured(half, Seconds(whole=4.0, full=6.0, skip=1.0, step=0.0, outside=0.0))
    assert timings.corrected([half])[0].full_seconds == 6.0


class _Told(Trials):
    """Trials that are told what each plan shows: its error, and how slow it turns out to be."""

    def __init__(self, shown: dict[object, tuple[float, float]]) -> None:
        self.shown, self.tried = shown, list[object]()

    def corrected(self, plans: Sequence[RehashPlan]) -> list[RehashPlan]:
        slow = {key: self.shown[key][1] for key in self.tried}
        return [dataclasses.replace(p, step_seconds=slow.get(key_of(p), p.step_seconds)) for p in plans]

    def try_on(self, plan: RehashPlan, number: int, limit: float = math.inf) -> Difference:
        self.tried.append(key_of(plan))
        error = self.shown[key_of(plan)][0]
        return Difference(error, 0.0, {}, error)

    def _tell(self, *_: Any) -> None:
        pass


def test_what_is_estimated_further_than_a_beaten_plan_of_the_same_cut_is_not_tried(half: RehashPlan) -> None:
    plan = dataclasses.replace(half, whole_seconds=4.0, full_seconds=4.0, skip_seconds=1.0, step_seconds=0)
    steps = plan.steps

    def other(cut: int, size: int, predicted: float, skipped: int) -> RehashPlan:
        left = [index for index, prediction in enumerate(steps) if prediction is not None][skipped:]
        fewer = tuple(None if index in left else prediction for index, prediction in enumerate(steps))
        return dataclasses.replace(plan, cut=(cut,), snapshot_bytes=size, predicted_error=predicted, steps=fewer)

    small, large, more = other(1, 1, 0.01, 4), other(2, 2, 0.01, 3), other(2, 2, 0.012, 4)
    trials = _Told({key_of(small): (0.015, 0.0), key_of(large): (0.02, 100.0), key_of(more): (0.01, 0.0)})
    trials._try_on_one([small, large, more], 1.3, 16, {})
    assert trials.tried == [key_of(small), key_of(large)]
    trials = _Told({key_of(small): (0.015, 0.0), key_of(large): (0.014, 100.0), key_of(more): (0.01, 0.0)})
    trials._try_on_one([small, large, more], 1.3, 16, {})
    assert trials.tried == [key_of(small), key_of(large), key_of(more)], "it was too slow, and nearer than the best"


class _Shorter(Trials):
    """Calls with fewer steps that are told how far they end from the full ones."""

    def __init__(self, frames: Sequence[float]) -> None:
        self.frames, self.made = frames, 0

    @property
    def calls(self) -> int:
        return len(self.frames)

    def fewer_steps(
        self, share: float, enough: Callable[[Sequence[Difference]], bool] = lambda _: False
    ) -> tuple[list[Difference], int]:
        found = [Difference(f, 0.0, {}, f) for f in self.frames]
        self.made = next((n for n in range(1, len(found)) if enough(found[:n])), len(found))
        return found[: self.made], 4


@pytest.mark.parametrize(
    ("frames", "made", "won"),
    [
        ([0.1, 0.1, 0.1, 0.1], 2, True),
        ([0.02, 0.1, 0.02, 0.1], 3, True),
        ([0.0, 0.0, 0.1, 0.1], 4, True),
        ([0.0, 0.0, 0.0, 0.1], 4, False),
        ([0.011, 0.011, 0.011, 0.011], 4, False),
    ],
)
def test_fewer_steps_are_made_until_it_is_certain_that_a_plan_wins(
    half: RehashPlan, frames: list[float], made: int, won: bool
) -> None:
    own = [Difference(0.01, 0.0, {}, 0.01)] * 4
    learned, held_out = _Shorter(frames), _Shorter(frames)
    contest = Contest(learned, held_out, accept_worse=False)
    assert contest.won(half, own, held_out=False) == won
    assert learned.made == made
    assert contest.won(half, own, held_out=True) == won
    assert held_out.made == 4, "what these show is told"
