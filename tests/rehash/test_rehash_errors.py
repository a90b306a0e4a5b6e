"""What errors are predicted to be: sketches keep inner products, and predictions are means over the runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sicompiler.planners.skip_schedule import Prediction
from sicompiler.rehash.choose import PlanInputs, costs_of, make_plan
from sicompiler.rehash.lessons import CutStats, RunStats
from sicompiler.rehash.sketch import PIECE, WIDTH, sketch

pytestmark = pytest.mark.pure


SUBJECT = PlanInputs("Pipe", "unet", "abc", "DDIM()", 1)


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_a_predicted_error_is_that_of_one_run_however_many_were_learned_from(runs: int) -> None:
    feature = np.random.default_rng(0).standard_normal((9, 5)).cumsum(0)
    rows = CutStats((3,), ("add",), 64, tuple(map(float, range(9))), np.ones(9), response=np.full(9, 0.5))
    for _ in range(runs):
        rows.add(RunStats((feature @ feature.T,), np.full(9, 2.0), 1.0, 0.1), 1.0)
    schedule = tuple(Prediction((3,), (1.0,)) if step == 4 else None for step in range(9))
    plan = make_plan(SUBJECT, rows, costs_of(rows, "lagrange", 0), schedule, "planned")
    off = np.linalg.norm(feature[4] - feature[3]) / np.linalg.norm(feature[4])
    assert plan.predicted_error == pytest.approx(2.0 * 0.5 * off, rel=1e-9)


def test_errors_of_a_stretch_add_up_and_those_of_stretches_in_squares() -> None:
    rows = CutStats((3,), ("add",), 64, tuple(map(float, range(7))), np.ones(7), response=np.ones(7))
    feature = np.eye(7)
    rows.add(RunStats((feature @ feature.T,), np.ones(7), 1.0, 0.1), 1.0)
    reused = {step: Prediction((0,), (1.0,)) for step in (1, 2, 5)}  # each off by the root of two
    schedule = tuple(reused.get(step) for step in range(7))
    plan = make_plan(SUBJECT, rows, costs_of(rows, "lagrange", 0), schedule, "planned")
    assert plan.predicted_error == pytest.approx(2**0.5 * (2**2 + 1) ** 0.5)


@pytest.mark.parametrize("channels", [320, 1024, WIDTH])
@pytest.mark.parametrize("hot", [1.0, 100.0])
def test_sketches_keep_distances_whatever_the_layout(channels: int, hot: float) -> None:
    """A channel that is a hundred times larger, as transformers have them, lies at every so many entries."""
    tokens, found = 3 * PIECE // channels, []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        one, other = (torch.randn(tokens, channels, generator=generator) for _ in range(2))
        one[:, 7] *= hot
        other[:, 7] *= hot
        found.append(float((sketch((one,), seed) - sketch((other,), seed)).norm() / (one - other).norm()))
    assert np.mean(found) == pytest.approx(1, abs=0.06)
    assert np.std(found) < 0.06


def test_sketches_are_linear() -> None:
    parts = [torch.randn(5000), torch.randn(70, 3)]
    doubled = sketch(tuple(2 * part for part in parts))
    assert torch.allclose(doubled, 2 * sketch(tuple(parts)))
    assert not torch.allclose(doubled, 2 * sketch(tuple(parts), seed=1))
