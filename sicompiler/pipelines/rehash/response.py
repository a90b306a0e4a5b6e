"""Runs in which one evaluation is skipped, to see what its error does to the final latents."""

from __future__ import annotations

from collections.abc import Mapping

from sicompiler.errors import OverBudget
from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.rehash.references import References
from sicompiler.pipelines.rehash.resume import CalibrationLog
from sicompiler.pipelines.rehash.runs import ending_after, relative_error, run_call, tell
from sicompiler.pipelines.rehash.script import Script
from sicompiler.rehash.choose import PlanInputs, costs_of, make_plan
from sicompiler.rehash.lessons import CutStats
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.response import probed, response_of, skipping_one

CALLS = 2  # of those that are learned from


def measure_response(
    state: CompiledPipeline, notes: CalibrationLog, references: References, scripts: Mapping[int, Script]
) -> None:
    """Let the lessons know what an error at each evaluation does, by skipping a few, one a run, at the smallest cut.

    The calls take turns. Up to the evaluation before the one that is skipped, a run is its full run, whose outputs are
    given again where they were written down.

    Args:
        state: of the pipeline, which has learned from the calls in one setting.
        notes: of these calls; what they know of such runs is not run again.
        references: the calls in full.
        scripts: of their full runs, by the number of the call, as far as there are.
    """
    rehash = state.rehash
    assert rehash is not None
    (setting,) = rehash.lessons
    smallest, subject = min(rehash.lessons[setting], key=lambda rows: rows.nbytes), rehash.subject(setting)
    apart = smallest.apart
    steps = [s for s in probed(len(setting.times)) if apart is None or not apart[s - 1, s]]
    calls = references.calls[:CALLS]
    wanted = [(number, step) for number in range(len(calls)) for step in steps[number :: len(calls)]]
    waiting = [(number, step) for number, step in wanted if step not in notes.errors_of(number)]
    for component in state.components.values():
        component.analyses.keep()
    try:
        for number, step in waiting:
            reference = references.of(number).final
            tell(state, "measuring how errors grow", wanted.index((number, step)), len(wanted))
            rehash.plans[setting], rehash.script = plan_skipping_one(subject, smallest, step), scripts.get(number)
            if rehash.script is not None:
                rehash.script.until = step  # that one is skipped with the feature of the one before
            found = run_call(state, calls[number], ending_after(len(setting.times)))
            notes.add_error(number, step, relative_error(found.final, reference))
    except OverBudget:
        return  # what the scheduler alone makes of errors has to do
    finally:
        rehash.script = None
        rehash.plans.pop(setting, None)
    known = [notes.errors_of(number) for number in range(len(calls))]
    errors = {step: [row[step] for row in known if step in row] for step in steps}
    response = response_of(smallest, errors)
    for rows in rehash.lessons[setting]:
        rows.response = response


def plan_skipping_one(subject: PlanInputs, lessons: CutStats, step: int) -> RehashPlan:
    """A plan that gives one evaluation the feature of the one before, and runs all others in full."""
    costs = costs_of(lessons, "least squares", 0)
    return make_plan(subject, lessons, costs, skipping_one(costs.count, step), "one skipped", guard=False)
