"""Random modules, written as users write them: planned for four budgets each, run, and given back as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.testing import SMALL, WIDE
from sicompiler.testing.checks import four_budgets, run_budgets, run_publicly

PART = 25  # modules of one test, so that workers share them and a run of thousands stays below the limit of one test
DEEP = hypothesis.settings().max_examples >= 300
SEEDS = 200
# By default: with every kind of layer three times, once of these offloaded and once in a large module, as far as that
# occurs in all; chosen for few layers. The rest, and thousands that Hypothesis draws, by `make test-deep`.
QUICK = (
    2, 12, 14, 18, 23, 27, 35, 38, 42, 48, 50, 59, 61, 63, 71, 75, 77, 78, 79, 80, 84, 85, 90, 93, 94, 95, 97, 102, 103,
    106, 107, 119, 120, 126, 127, 130, 133, 134, 135, 138, 141, 142, 143, 145, 146, 151, 153, 155, 156, 159, 163, 164,
    167, 170, 175, 179, 182, 186, 189, 194, 199,
)  # fmt: skip
REST = [seed for seed in range(SEEDS) if seed not in QUICK]


def is_wide(seed: int) -> bool:
    """Every eighth module is large, with peaks of several MiB."""
    return seed % 8 == 7


def is_offloaded(seed: int) -> bool:
    """Every fourth module is also offloaded."""
    return seed % 4 == 2


def module_of(seed: int) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    return testing.random_network(seed, scale=WIDE if is_wide(seed) else SMALL)


def problems_of(seed: int) -> list[str]:
    module, args, kwargs = module_of(seed)
    outcomes = run_budgets(module, args, kwargs, offload=is_offloaded(seed))
    return [f"seed {seed}: {line}" for outcome in outcomes for line in outcome.problems()]


def parts(seeds: Sequence[int]) -> list[Any]:
    return [pytest.param(seeds[n : n + PART], id=f"from {seeds[n]}") for n in range(0, len(seeds), PART)]


@pytest.mark.parametrize("seeds", parts(QUICK))
def test_modules_keep_their_output_within_four_budgets(seeds: Sequence[int]) -> None:
    assert [line for seed in seeds for line in problems_of(seed)] == []


@pytest.mark.slow
@pytest.mark.parametrize("seeds", parts(REST))
def test_more_modules_keep_their_output_within_four_budgets(seeds: Sequence[int]) -> None:
    assert [line for seed in seeds for line in problems_of(seed)] == []


@pytest.mark.slow
def test_the_modules_of_the_default_tier_have_every_kind_of_layer() -> None:
    kinds = {seed: {type(child).__name__ for child in module_of(seed)[0].modules()} for seed in range(SEEDS)}

    def lacking(times: int, chosen: Callable[[int], bool]) -> list[str]:
        quick, every = (Counter(k for seed in seeds if chosen(seed) for k in kinds[seed]) for seeds in (QUICK, kinds))
        return [kind for kind, count in every.items() if quick[kind] < min(times, count)]

    assert lacking(3, lambda _: True) == []
    assert lacking(1, is_offloaded) == []
    assert lacking(1, is_wide) == []


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
    budget, offload = four_budgets(prepare(module, args, kwargs)[1], offload=True)[seed % 4]
    assert run_publicly(module, args, kwargs, budget, offload) == []


def test_the_same_seed_gives_the_same_module() -> None:
    one, two = testing.random_network(7), testing.random_network(7)
    assert str(one[0]) == str(two[0]) != str(testing.random_network(8)[0])
    assert all(map(lambda a, b: a.equal(b), one[0].parameters(), two[0].parameters()))
