"""Random networks on the emulated device: four budgets each, two of them below what slicing alone reaches."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from sicompiler import testing
from sicompiler.testing.checks import run_budgets
from tests.emulated.product import EMU, register

# Of networks of a few kilobytes, whose peaks come out above what was predicted, by less than one.
TOO_LOW = (1, 6, 9)
_TOO_LOW = pytest.mark.xfail(reason="predicted too low by up to 800 bytes")
SEEDS = [pytest.param(seed, marks=[_TOO_LOW] if seed in TOO_LOW else []) for seed in range(12)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_is_right_and_within_what_was_predicted(seed: int) -> None:
    """Predictions may be too high: they count memory that kernels of a real card take for themselves."""
    register()
    module, args, kwargs = testing.random_network(seed)
    module.to(EMU)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(EMU), (args, kwargs))
    outcomes = run_budgets(module, args, kwargs, offload=True)
    assert len(outcomes) == 4
    problems = [problem for outcome in outcomes for problem in outcome.problems()]
    assert [problem for problem in problems if "without weights" not in problem] == []
