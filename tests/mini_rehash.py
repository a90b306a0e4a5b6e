"""The mini pipeline with Step Rehash: what its tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import sicompiler
from sicompiler import Rehash, RehashPlan
from sicompiler.adapters.pipeline import pipeline_state
from tests.mini_pipeline import mini, picture

STEPS = 8
ROOMY = "4MiB"
CALL: Mapping[str, Any] = {"image": picture(), "steps": STEPS}


def call_list(count: int, steps: int = STEPS) -> list[dict[str, Any]]:
    return [{"image": picture() + 0.1 * number, "steps": steps} for number in range(count)]


def rehashed(pipe: Any = None, budget: str = ROOMY, **wanted: Any) -> Any:
    """A pipeline that skips."""
    wanted = wanted or {"rel_error": 0.9}  # any plan: of a model this small, skipping may not even be faster
    return sicompiler.compile_for_budget(pipe or mini(), budget, rehash=Rehash(**{"calls": call_list(1), **wanted}))


def plan_of(pipe: Any) -> RehashPlan:
    """The plan of the newest call."""
    plan = sicompiler.rehash_report(pipe).plan
    assert plan is not None
    return plan


def half_plan(pipe: Any, skipped: int = STEPS // 2) -> RehashPlan:
    """A plan of a pipeline that skips half of its evaluations, whatever its time; the pipeline is released."""
    state = pipeline_state(rehashed(pipe), "plan")
    assert state.rehash is not None
    setting = next(iter(state.rehash.lessons))
    plan = next(p for p in state.rehash.candidates(setting) if p.evaluations - len(p.full) == skipped)
    sicompiler.release(pipe)
    return plan


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
