"""Runs in which one evaluation is skipped, to see what its error does to the final latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sicompiler.adapters.pipeline import PipelineState
from sicompiler.adapters.resume import Notes
from sicompiler.adapters.runs import relative_error, run_call, tell
from sicompiler.errors import OverBudget
from sicompiler.rehash.choose import Subject, costs_of, make_plan
from sicompiler.rehash.lessons import Lessons
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.response import probed, response_of, skipping_one

CALLS = 2  # of those that are learned from


def measure_response(state: PipelineState, notes: Notes, calls: Sequence[Mapping[str, Any]]) -> None:
    """Let the lessons know what an error at each evaluation does, by skipping a few, one a run, at the smallest cut.

    Args:
        state: of the pipeline, which has learned from the calls in one setting.
        notes: of these calls; what they know of such runs is not run again.
        calls: keyword arguments.
    """
    rehash = state.rehash
    assert rehash is not None
    (setting,) = rehash.lessons
    smallest, subject = min(rehash.lessons[setting], key=lambda rows: rows.nbytes), rehash.subject(setting)
    apart = smallest.apart
    steps = [s for s in probed(len(setting.times)) if apart is None or not apart[s - 1, s]]
    calls = calls[:CALLS]
    for component in state.components.values():
        component.keep_analyses()
    try:
        for number, call in enumerate(calls):
            if not (waiting := [step for step in steps if step not in notes.errors_of(number)]):
                continue
            with rehash.switched("exact"):
                reference = run_call(state, call).final
            for step in waiting:
                tell(
                    state, "measuring how errors grow", number * len(steps) + steps.index(step), len(calls) * len(steps)
                )
                rehash.plans[setting] = plan_skipping_one(subject, smallest, step)
                notes.add_error(number, step, relative_error(run_call(state, call).final, reference))
    except OverBudget:
        return  # what the scheduler alone makes of errors has to do
    finally:
        rehash.plans.pop(setting, None)
    errors = {step: [notes.errors_of(number)[step] for number in range(len(calls))] for step in steps}
    response = response_of(smallest, errors)
    for rows in rehash.lessons[setting]:
        rows.response = response


def plan_skipping_one(subject: Subject, lessons: Lessons, step: int) -> RehashPlan:
    """A plan that gives one evaluation the feature of the one before, and runs all others in full."""
    costs = costs_of(lessons, "least squares", 0)
    return make_plan(subject, lessons, costs, skipping_one(costs.count, step), "one skipped", guard=False)
