"""Step Rehash in pipelines of diffusers, tiny and with random weights: near the full run, within the same budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sicompiler
from sicompiler.errors import BadInput
from tests import pipelines, pipelines_transformers
from tests.mini_rehash import skipping_is_fast, told_clock

pytestmark = pytest.mark.usefixtures("cached")

STEPS = 8
BUDGET = "400MiB"


def _call(make: Any, seed: int = 0) -> dict[str, Any]:
    return {**make(), "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(seed)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svd", "animatediff", "wan", "hunyuanvideo"])
def test_a_pipeline_skips_within_its_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told_clock(monkeypatch, skipping_is_fast)  # models this tiny are hardly faster where they skip
    home = pipelines if hasattr(pipelines, name) else pipelines_transformers
    make = getattr(home, f"{name}_call")
    pipe = getattr(home, name)()
    pipe.set_progress_bar_config(disable=True)
    calls = [_call(make, seed) for seed in range(3)]
    request = sicompiler.Rehash(rel_error=0.2, calls=calls, held_out=1, accept_worse=True)  # random weights: who knows
    sicompiler.compile_for_budget(pipe, BUDGET, rehash=request)
    found = sicompiler.verify(pipe, ((), _call(make)))
    report = sicompiler.rehash_report(pipe)
    assert report.plan is not None
    assert report.plan.verified is not None
    assert report.plan.verified.rel_error <= 0.2
    assert report.full == len(report.plan.full) * report.plan.branches
    assert report.skipped > 0
    assert found.fits, str(found)


def test_two_transformers_in_turns_are_refused() -> None:
    pipe = pipelines_transformers.wan_two()
    pipe.set_progress_bar_config(disable=True)
    calls = [{**_call(pipelines_transformers.wan_call, seed), "output_type": "latent"} for seed in range(2)]
    request = sicompiler.Rehash(rel_error=0.2, calls=calls)
    with pytest.raises(BadInput, match=r"the loop ran transformer at \d of its 8 steps; Step Rehash needs every step"):
        sicompiler.compile_for_budget(pipe, BUDGET, rehash=request)
