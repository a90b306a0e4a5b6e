"""Tests on random models: seeds in a row by default; Hypothesis, which shrinks what fails, under the profile `deep`.

Examples of Hypothesis are in good part variations of earlier ones: 60 seeds of `draw_module` have more pairs of
operators that follow each other (135) than 120 of its examples (106), and every operator that these have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st

DEEP = hypothesis.settings().max_examples >= 300
Choose = Callable[[Sequence[Any]], Any]


def for_choices(check: Callable[[Choose], None], *, seeds: int, deep: int) -> None:
    """Check what comes of random choices.

    Args:
        check: given what chooses among options.
        seeds: how often by default.
        deep: how often under the profile `deep`.
    """
    if DEEP:
        _by_hypothesis(check, deep)
        return
    for seed in range(seeds):
        try:
            check(random.Random(seed).choice)
        except Exception as error:
            error.add_note(f"with seed {seed}; HYPOTHESIS_PROFILE=deep looks for a smaller case")
            raise


def _by_hypothesis(check: Callable[[Choose], None], count: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @hypothesis.settings(max_examples=count, suppress_health_check=checks)
    @hypothesis.given(data=st.data())
    def run(data: st.DataObject) -> None:
        check(lambda options: data.draw(st.sampled_from(options)))

    run()


def seeded(choose: Choose, low: int = 1, high: int = 8) -> int:
    """A number between two others."""
    return int(choose(range(low, high + 1)))
