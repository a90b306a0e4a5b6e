"""Runs in which one evaluation is skipped, to see what its error does to the final latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sicompiler.adapters.pipeline import PipelineState
from sicompiler.adapters.resume import Notes
from sicompiler.adapters.trials import relative_error, run_call, tell
from sicompiler.errors import OverBudget
from sicompiler.rehash.choose import costs_of, make_plan
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
    smallest = min(rehash.lessons[setting], key=lambda rows: rows.nbytes)
    costs, subject = costs_of(smallest, "least squares", 0), rehash.subject(setting)
    steps = probed(costs.count)
    for component in state.components.values():
        component.keep_analyses()
    errors: dict[int, list[float]] = {step: [] for step in steps}
    before = rehash.plans.get(setting)
    try:
        for number, call in enumerate(calls[:CALLS]):
            known, reference = notes.errors_of(number), None
            for index, step in enumerate(steps):
                tell(state, "measuring how errors grow", number * len(steps) + index, len(calls[:CALLS]) * len(steps))
                if step not in known:
                    if reference is None:
                        reference = _in_full(state, call)
                    schedule = skipping_one(costs.count, step)
                    rehash.plans[setting] = make_plan(subject, smallest, costs, schedule, "probe", guard=False)
                    notes.add_error(number, step, relative_error(run_call(state, call).final, reference))
                errors[step].append(notes.errors_of(number)[step])
    except OverBudget:
        return  # what the scheduler alone makes of errors has to do
    finally:
        rehash.plans.pop(setting, None)
        if before is not None:
            rehash.plans[setting] = before
    response = response_of(smallest, errors)
    for rows in rehash.lessons[setting]:
        rows.response = response


def _in_full(state: PipelineState, call: Mapping[str, Any]) -> torch.Tensor:
    assert state.rehash is not None
    with state.rehash.switched("exact"):
        return run_call(state, call).final
