"""Random modules, written as users write them: planned for four budgets each, run, and given back as they were."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.testing import SMALL, WIDE
from sicompiler.testing.checks import four_budgets, run_budgets, run_publicly

PART = 25  # modules of one test, so that workers share them and a run of thousands stays below the limit of one test
DEEP = hypothesis.settings().max_examples >= 300
SEEDS = 200


def problems_of(seed: int) -> list[str]:
    """Every eighth module is large, with peaks of several MiB; every fourth is also offloaded."""
    module, args, kwargs = testing.random_network(seed, scale=WIDE if seed % 8 == 7 else SMALL)
    outcomes = run_budgets(module, args, kwargs, offload=seed % 4 == 2)
    return [f"seed {seed}: {line}" for outcome in outcomes for line in outcome.problems()]


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_modules_keep_their_output_within_four_budgets(first: int) -> None:
    assert [line for seed in range(first, first + PART) for line in problems_of(seed)] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(200 if DEEP else 8))
def test_modules_drawn_by_hypothesis_keep_their_output_within_four_budgets(part: int) -> None:
    """5,000 modules under the profile `deep`; what fails is shrunk to a few blocks."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @hypothesis.seed(part)
    @hypothesis.settings(max_examples=PART, suppress_health_check=checks)
    @hypothesis.given(data=st.data())
    def check(data: st.DataObject) -> None:
        draw = testing.Draw(lambda options: data.draw(st.sampled_from(options)))
        scale, size, seed = draw.pick((SMALL,) * 7 + (WIDE,)), draw.pick(range(1, 9)), draw.pick(range(100))
        module, args, kwargs = testing.draw_network(draw.pick, size, scale=scale, seed=seed)
        hypothesis.note(str(module))
        offload = draw.pick((False, False, False, True))
        wrong = [line for outcome in run_budgets(module, args, kwargs, offload=offload) for line in outcome.problems()]
        assert not wrong, "\n".join([*wrong, str(module)])

    check()


@pytest.mark.parametrize("seed", range(100 if DEEP else 8))
def test_a_module_taken_over_and_released_is_as_before(seed: int) -> None:
    module, args, kwargs = testing.random_network(seed)
    budget, far_memory = four_budgets(prepare(module, args, kwargs)[1], offload=True)[seed % 4]
    assert run_publicly(module, args, kwargs, budget, far_memory) == []


def test_the_same_seed_gives_the_same_module() -> None:
    one, two = testing.random_network(7), testing.random_network(7)
    assert str(one[0]) == str(two[0]) != str(testing.random_network(8)[0])
    assert all(map(lambda a, b: a.equal(b), one[0].parameters(), two[0].parameters()))
