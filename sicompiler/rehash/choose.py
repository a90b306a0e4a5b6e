"""Which plan: all cuts, orders and numbers of full evaluations, and the one that meets a target."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sicompiler.errors import BadInput
from sicompiler.planners.skip_schedule import (
    Prediction,
    Predictor,
    Schedule,
    StepCosts,
    best_schedules,
    cost_of,
    schedule_of,
    similar_steps_of,
    squared_error,
    uniform_steps,
)
from sicompiler.rehash.lessons import CutStats
from sicompiler.rehash.plan import Check, FrontierPoint, RehashPlan
from sicompiler.rehash.request import Strategy

GUARD = 2.0
"""The guard ends skipping where its error is so many times what is predicted there: the worst that was seen on calls
that the weights had not learned from, or, of a plan that was never tried, what full runs let expect."""

LEAST_BOUND = 0.02
"""Relative error of a feature that the guard always accepts: rounding and small differences between prompts."""


@dataclass(frozen=True)
class PlanInputs:
    """What plans are made for.

    Attributes:
        pipeline: class of the pipeline.
        component: the denoiser's name in it.
        structure: of its graph.
        scheduler: class and configuration.
        branches: calls of the denoiser in one step.
    """

    pipeline: str
    component: str
    structure: str
    scheduler: str
    branches: int


def make_plan(
    subject: PlanInputs, lessons: CutStats, costs: StepCosts, schedule: Schedule, strategy: str, *, guard: bool = True
) -> RehashPlan:
    """A plan from a schedule.

    Args:
        subject: what it is for.
        lessons: of the cut it uses.
        costs: with which the schedule was chosen.
        schedule: how each evaluation predicts.
        strategy: how it was chosen.
        guard: whether full evaluations measure what would have been predicted there; it holds features longer.
    """
    return RehashPlan(
        pipeline=subject.pipeline,
        component=subject.component,
        structure=subject.structure,
        scheduler=subject.scheduler,
        cut=lessons.cut,
        cut_names=lessons.names,
        snapshot_bytes=lessons.nbytes,
        branches=subject.branches,
        steps=schedule,
        checks=_checks(costs, schedule) if guard else (None,) * len(schedule),
        strategy=strategy,
        predicted_error=cost_of(costs, schedule),
        whole_seconds=lessons.full_seconds,
        full_seconds=lessons.full_seconds,
        skip_seconds=lessons.skip_seconds,
        step_seconds=lessons.step_seconds,
        kinds=lessons.kinds,
    )


def refitted(plan: RehashPlan, lessons: CutStats, predictor: Predictor) -> RehashPlan:
    """A plan with the weights that some runs teach, its schedule unchanged; the weights of rules are taught by none.

    Args:
        plan: to be changed.
        lessons: of the runs, at the plan's cut.
        predictor: whose weights they are.
    """
    if plan.strategy != "planned" or predictor != "least squares":
        return plan
    costs = costs_of(lessons, predictor, plan.order)

    def again(step: int, old: Prediction) -> Prediction:
        return old if len(old.sources) == 1 else Prediction(old.sources, costs.weights(old.sources, step))

    return replace(
        plan,
        steps=tuple(old and again(step, old) for step, old in enumerate(plan.steps)),
        checks=tuple(
            check and replace(check, prediction=again(step, check.prediction)) for step, check in enumerate(plan.checks)
        ),
    )


def unguarded(plan: RehashPlan) -> RehashPlan:
    """A plan with a guard that measures and never ends skipping."""
    return replace(plan, checks=tuple(check and replace(check, bound=math.inf) for check in plan.checks))


def guarded(plan: RehashPlan, seen: Mapping[int, float]) -> RehashPlan:
    """A plan with a guard set by errors that were measured.

    Args:
        plan: tried before.
        seen: the worst error at each evaluation, over the runs.
    """
    return replace(
        plan,
        checks=tuple(
            check and replace(check, bound=max(GUARD * seen[step], LEAST_BOUND) if step in seen else check.bound)
            for step, check in enumerate(plan.checks)
        ),
    )


def costs_of(lessons: CutStats, predictor: Predictor, order: int) -> StepCosts:
    """What skipping costs at one cut."""
    return StepCosts(lessons.gram, lessons.weight, lessons.times, predictor, order, lessons.apart)


def _checks(costs: StepCosts, schedule: Schedule) -> tuple[Check | None, ...]:
    found: list[Check | None] = []
    for step, prediction in enumerate(schedule):
        before = schedule[step - 1] if step else None
        if prediction is not None or before is None or not costs.reaches(before.sources, step):
            found.append(None)
            continue
        guess = (
            Prediction(before.sources[-1:], (1.0,)) if len(before.sources) == 1 else costs.best(before.sources, step)[1]
        )
        norm = max(float(costs.gram[step, step]), 1e-300)
        error = (squared_error(costs.gram, guess, step) / norm) ** 0.5
        found.append(Check(guess, max(GUARD * error, LEAST_BOUND)))
    return tuple(found)


def planned(subject: PlanInputs, lessons: Sequence[CutStats], predictor: Predictor, order: int) -> list[RehashPlan]:
    """The best plan of every cut, every order of the predictor and every number of full evaluations.

    Args:
        subject: what they are for.
        lessons: one a cut.
        predictor: how features are predicted.
        order: of the predictor at most.
    """
    found = {}
    for cut, most in itertools.product(lessons, range(order + 1)):
        costs = costs_of(cut, predictor, most)
        for full, (_, schedule) in best_schedules(costs).items():
            if full < costs.count:
                found[cut.cut, schedule] = make_plan(subject, cut, costs, schedule, "planned")
    return list(found.values())


def worth_trying(plans: Sequence[RehashPlan]) -> list[RehashPlan]:
    """The plan of least predicted error of every cut: estimates compare well within one, and less between them.

    Args:
        plans: all of which meet the target.
    """
    found: dict[tuple[object, ...], RehashPlan] = {}
    for plan in sorted(plans, key=lambda p: p.predicted_error):
        found.setdefault((plan.strategy, plan.cut), plan)
    return list(found.values())


def by_rule(strategy: Strategy, subject: PlanInputs, lessons: Sequence[CutStats]) -> list[RehashPlan]:
    """The plans that a rule makes, of every cut and every number of full evaluations it comes to.

    Args:
        strategy: which rule; not "planned".
        subject: what they are for.
        lessons: one a cut.
    """
    found = {
        (cut.cut, plan.full): plan
        for cut in lessons
        for full in range(1, len(cut.times))
        for plan in [RULES[strategy](subject, cut, full)]
        if len(plan.full) < plan.evaluations
    }
    return list(found.values())


def uniform(subject: PlanInputs, lessons: CutStats, full: int, order: int = 0, *, guard: bool = True) -> RehashPlan:
    """Full evaluations at even distances; plain reuse, or Lagrange over the times (`order` 1: Taylor)."""
    times = [float(i) for i in range(len(lessons.times))]
    costs = StepCosts(lessons.gram, lessons.weight, times, "lagrange", order, lessons.apart)
    steps = uniform_steps(costs.count, full)
    if order == 0:
        return make_plan(subject, lessons, costs, schedule_of(costs, steps), "uniform", guard=guard)
    return make_plan(subject, lessons, costs, _of_full_order(costs, steps), "taylor", guard=guard)


def _of_full_order(costs: StepCosts, full: Sequence[int]) -> Schedule:
    def predict(last: tuple[int, ...], step: int) -> Prediction:
        sources = tuple(s for s in last if costs.reaches([s], step))
        return Prediction(sources, costs.weights(sources, step))

    return schedule_of(costs, full, predict)


def deepcache(subject: PlanInputs, lessons: CutStats, full: int, *, guard: bool = True) -> RehashPlan:
    """The rule of DeepCache (arXiv 2312.00858): in full at every n-th evaluation; plain reuse. n fits `full` best."""
    costs = costs_of(lessons, "lagrange", 0)
    interval = max(-(-costs.count // full), 1)
    steps = tuple(range(0, costs.count, interval))
    return make_plan(subject, lessons, costs, schedule_of(costs, steps), "deepcache", guard=guard)


def similar(subject: PlanInputs, lessons: CutStats, full: int, *, guard: bool = True) -> RehashPlan:
    """The rule of Streamlined Inference: a threshold on the similarity with the last full evaluation; plain reuse."""
    costs = costs_of(lessons, "lagrange", 0)
    steps = similar_steps_of(costs.gram, full)
    return make_plan(subject, lessons, costs, schedule_of(costs, steps), "similarity", guard=guard)


def taylor(subject: PlanInputs, lessons: CutStats, full: int) -> RehashPlan:
    """Full evaluations at even distances, and a straight line through the last two of them."""
    return uniform(subject, lessons, full, order=1)


RULES: Mapping[Strategy, Callable[[PlanInputs, CutStats, int], RehashPlan]] = {
    "uniform": uniform,
    "taylor": taylor,
    "similarity": similar,
    "deepcache": deepcache,
}


def with_frontier(plan: RehashPlan, plans: Sequence[RehashPlan]) -> RehashPlan:
    """A plan that knows what else could be had: for each number of full evaluations the smallest error, if it pays.

    Errors of others are estimates by full runs, scaled by what calls have shown of the plan, where it was checked.
    """
    own = next((p.predicted_error for p in plans if (p.cut, p.steps) == (plan.cut, plan.steps)), 0.0)
    scale = plan.predicted_error / own if plan.checked and own > 0 and math.isfinite(plan.predicted_error) else 1.0
    points: list[FrontierPoint] = []
    for other in sorted(plans, key=lambda p: (-p.speedup, p.predicted_error)):
        error = scale * other.predicted_error
        if not points or error < points[-1].predicted_error:
            points.append(FrontierPoint(len(other.full), other.speedup, error, other.cut_names, other.snapshots_bytes))
    return replace(plan, points=tuple(points))


def fastest_within(plans: Sequence[RehashPlan], rel_error: float) -> RehashPlan:
    """The fastest plan whose predicted error is within a bound.

    Raises:
        BadInput: none is; names the nearest that can be had.
    """
    within = [p for p in plans if p.predicted_error <= rel_error]
    if not within:
        nearest = min(plans, key=lambda p: p.predicted_error)
        raise BadInput(
            f"no plan that skips is predicted within rel_error={rel_error:g}; the nearest is "
            f"rel_error={nearest.predicted_error:.3g} at speedup={nearest.speedup:.3g}"
        )
    return max(within, key=lambda p: (p.speedup, -p.predicted_error))


def most_exact_at(plans: Sequence[RehashPlan], speedup: float) -> RehashPlan:
    """The plan of least predicted error that is fast enough.

    Raises:
        BadInput: none is; names the nearest that can be had.
    """
    enough = [p for p in plans if p.speedup >= speedup]
    if not enough:
        nearest = max(plans, key=lambda p: p.speedup)
        raise BadInput(
            f"speedup={speedup:g} can't be reached by skipping: with one evaluation in full the loop is "
            f"{nearest.speedup:.3g} times as fast; the nearest target is speedup={nearest.speedup:.3g}"
        )
    return min(enough, key=lambda p: p.predicted_error)
