"""The mini pipeline with Step Rehash: what its tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sicompiler
from sicompiler import Rehash, RehashPlan
from sicompiler.pipelines import component
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.pipeline import pipeline_state
from sicompiler.pipelines.rehash import hooks
from sicompiler.pipelines.rehash.calibrate import learn
from sicompiler.pipelines.subgraph import GraphPart
from sicompiler.rehash.request import Strategy
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


def half_plan(pipe: Any, skipped: int = STEPS // 2, strategy: Strategy = "planned") -> RehashPlan:
    """A plan of a pipeline that skips half of its evaluations, whatever its time; the pipeline is released."""
    sicompiler.compile_for_budget(pipe, ROOMY, rehash=Rehash(speedup=2, strategy=strategy))
    state = pipeline_state(pipe, "plan")
    assert state.rehash is not None
    learn(state, call_list(1))
    setting = next(iter(state.rehash.lessons))
    plans = [p for p in state.rehash.candidates(setting) if p.evaluations - len(p.full) == skipped]
    plan = min(plans, key=lambda p: p.predicted_error)
    sicompiler.release(pipe)
    return plan


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def told_clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[GraphPart | None], float]) -> Callable[[], float]:
    """A clock that only evaluations of the denoiser move on, so that times are the same in every run.

    Args:
        monkeypatch: of the test.
        seconds: that a part of the denoiser takes, or all of it (None).

    Returns:
        The clock.
    """
    now, asked = 0.0, list[GraphPart]()
    part_for, run_part, run_whole = CompiledComponent.part_for, CompiledComponent.run_part, CompiledComponent.run_whole

    def watched(self: CompiledComponent, part: GraphPart, *args: Any, **kwargs: Any) -> Any:
        asked[:] = [part]
        return part_for(self, part, *args, **kwargs)

    def timed(self: CompiledComponent, *args: Any, **kwargs: Any) -> Any:
        nonlocal now
        now += seconds(asked[0])
        return run_part(self, *args, **kwargs)

    def timed_whole(self: CompiledComponent, *args: Any, **kwargs: Any) -> Any:
        nonlocal now
        now += seconds(None)
        return run_whole(self, *args, **kwargs)

    def read() -> float:
        return now

    monkeypatch.setattr(CompiledComponent, "part_for", watched)
    monkeypatch.setattr(CompiledComponent, "run_part", timed)
    monkeypatch.setattr(CompiledComponent, "run_whole", timed_whole)
    for module in (hooks, component):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=read))
    return read


def skipping_is_fast(part: GraphPart | None) -> float:
    """Seconds for `told_clock`: a skipped evaluation takes a quarter of a full one."""
    return 1.0 if part is not None and part.kind == "skip" else 4.0
