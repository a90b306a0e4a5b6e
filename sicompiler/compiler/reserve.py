"""What a plan reserves: its run replayed by the rules of the device's allocator; and plans whose budget bounds that.

A planner bounds what is alive. The allocator keeps segments beyond that, cut into blocks of other sizes than are asked
for next, and it is segments that fill a card. So a finished plan is replayed, event by event. Where it reserves more
than the budget the planner is asked again, for less.
"""

from __future__ import annotations

from dataclasses import replace

from sicompiler.codec import digest
from sicompiler.compiler.planner import AnyPlanner, Offload, Planner
from sicompiler.errors import OverBudget
from sicompiler.facts.allocator import CachingAllocator, MemoryPeaks
from sicompiler.facts.memory_blocks import AllocatorRules
from sicompiler.plan import Plan
from sicompiler.planners.registry import DP
from sicompiler.replay.run import SETTINGS, replay_run, rules_of
from sicompiler.units import budget_hint, format_bytes

ROUNDS = 3  # how often a smaller budget is tried before the floor
BISECTIONS = 2  # how often one between the floor and what is too large


def peaks_of(planner: Planner, plan: Plan, rules: AllocatorRules) -> MemoryPeaks:
    """The peaks of a run of a plan on an empty device; worked out once, and kept where the planner's answers are.

    Args:
        planner: that made the plan.
        plan: finished.
        rules: of the allocator.
    """

    def replayed() -> tuple[int, ...]:
        peaks = replay_run(planner.rewrite(plan), plan, CachingAllocator(rules))
        return peaks.live_bytes, peaks.allocated_bytes, peaks.reserved_bytes

    if planner.known is None:
        return MemoryPeaks(*replayed())
    unmarked = replace(plan, timings={}, predicted_allocated_bytes=None, predicted_reserved_bytes=None)
    return MemoryPeaks(*planner.known.peaks(f"replayed {rules} {digest(unmarked.to_json(indent=None))}", replayed))


def with_reserved(planner: Planner, plan: Plan) -> Plan:
    """A plan with what it reserves; as it is where the device's allocator keeps nothing, or the plan can't be run."""
    rules = rules_of(plan.device)
    if rules is None or not planner.bound or plan.predicted_reserved_bytes is not None:
        return plan
    peaks = peaks_of(planner, plan, rules)
    return replace(plan, predicted_allocated_bytes=peaks.allocated_bytes, predicted_reserved_bytes=peaks.reserved_bytes)


def plan_reserving(planner: Planner, budget_bytes: int, *, chooser: AnyPlanner = DP, offload: Offload = "none") -> Plan:
    """The fastest plan found that reserves no more than a budget.

    Args:
        planner: of the model.
        budget_bytes: weights, inputs, activations, workspace and what the allocator keeps beside them.
        chooser: which search to use, see `planners.registry`.
        offload: "auto" allows to spill values and to stream weights, if no plan fits otherwise.

    Raises:
        OverBudget: even the plan with the lowest peak takes more.
    """
    plan = with_reserved(planner, planner.plan(budget_bytes, planner=chooser, offload=offload))
    smaller = _smaller(planner, plan, budget_bytes, chooser, offload)
    if smaller.needed_bytes > budget_bytes:
        raise _refusal(planner, lowest_reserving(planner, offload), budget_bytes, offload)
    return smaller


def plan_within_reserving(
    planner: Planner, budget_bytes: int, *, chooser: AnyPlanner = DP, offload: Offload = "none"
) -> Plan | None:
    """The fastest plan found that reserves no more than a budget; None where none is.

    Args:
        planner: of the model.
        budget_bytes: of the plan, with what the allocator keeps.
        chooser: which search to use, see `planners.registry`.
        offload: "auto" allows to spill values and to stream weights, if no plan fits otherwise.
    """
    plan = planner.plan_within(budget_bytes, planner=chooser, offload=offload)
    if plan is None:
        return None
    plan = _smaller(planner, with_reserved(planner, plan), budget_bytes, chooser, offload)
    return plan if plan.needed_bytes <= budget_bytes else None


def lowest_reserving(planner: Planner, offload: Offload = "none") -> Plan:
    """The plan with the lowest peak, with what it reserves: what `plan_reserving` tries last."""
    return with_reserved(planner, planner.plan(planner.floor(offload)[0], offload=offload))


def _smaller(planner: Planner, plan: Plan, budget_bytes: int, chooser: AnyPlanner, offload: Offload) -> Plan:
    """A plan that reserves no more than a budget, of those for smaller and smaller ones; else that at the floor.

    What is reserved grows about as what is alive: the planner is asked for as much less. Where that does not come to an
    end soon, as segments are large beside a small model, it goes on from the floor upwards.
    """
    for _ in range(ROUNDS):
        if plan.needed_bytes <= budget_bytes:
            return replace(plan, budget_bytes=budget_bytes)
        asked = plan.predicted_peak_bytes * budget_bytes // plan.needed_bytes
        way: Offload = offload if plan.uses_offload else "none"  # before it offloads, see what the floor without takes
        lower = planner.plan_within(asked, planner=chooser, offload=way)
        if lower is None:
            break
        plan = with_reserved(planner, lower)
    if plan.needed_bytes > budget_bytes:
        plan = _from_the_floor(planner, plan, budget_bytes, chooser, offload)
    return replace(plan, budget_bytes=budget_bytes)


def _from_the_floor(planner: Planner, plan: Plan, budget_bytes: int, chooser: AnyPlanner, offload: Offload) -> Plan:
    """The best of the plans at the floor, without offloading first, and of some between it and one that is too large.

    Args:
        planner: of the model.
        plan: too large.
        budget_bytes: of the plan, with what the allocator keeps.
        chooser: which search to use, see `planners.registry`.
        offload: "auto" allows to spill values and to stream weights, if no plan fits otherwise.
    """
    too_large = plan.predicted_peak_bytes
    ways: tuple[Offload, ...] = ("none", "auto") if offload == "auto" else ("none",)
    for way in ways:
        lowest = planner.plan_within(planner.floor(way)[0], planner=chooser, offload=way)
        if lowest is None:
            continue
        plan = with_reserved(planner, lowest)
        if plan.needed_bytes > budget_bytes:
            continue
        for _ in range(BISECTIONS):
            asked = (plan.predicted_peak_bytes + too_large) // 2
            between = planner.plan_within(asked, planner=chooser, offload=way)
            if between is None:
                break
            between = with_reserved(planner, between)
            if between.needed_bytes <= budget_bytes:
                plan = between
            else:
                too_large = between.predicted_peak_bytes
        break
    return plan


def _refusal(planner: Planner, plan: Plan, budget_bytes: int, offload: Offload) -> OverBudget:
    """The error of a budget that would hold what is alive, but not what the allocator keeps.

    Args:
        planner: of the model.
        plan: the one with the lowest peak.
        budget_bytes: the budget.
        offload: what was allowed.
    """
    culprit, floor_bytes = planner.floor(offload)[1], plan.needed_bytes
    rules = rules_of(plan.device)
    hint = ""
    if rules is not None and not rules.expandable:
        expandable = peaks_of(planner, plan, replace(rules, expandable=True)).reserved_bytes
        hint = f"; with {SETTINGS[0]}=expandable_segments:True it takes {format_bytes(expandable)}"
    return OverBudget(
        f"{planner.model} does not fit {format_bytes(budget_bytes)}: the plan with the lowest peak has "
        f"{format_bytes(plan.predicted_peak_bytes)} alive, set by {culprit}, for which the allocator reserves "
        f"{format_bytes(floor_bytes)}{hint}. The nearest budget that works is {budget_hint(floor_bytes)}",
        budget_bytes=budget_bytes,
        floor_bytes=floor_bytes,
        culprit=culprit,
    )
