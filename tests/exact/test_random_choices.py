"""Random choices of tests: in a row by default, with the seed that fails named; by Hypothesis when looked deeper."""

from __future__ import annotations

import pytest

from tests import random_choices
from tests.random_choices import Choose, for_choices, seeded

pytestmark = pytest.mark.pure


def test_the_same_choices_come_each_time_and_a_failure_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_choices, "DEEP", False)
    runs: list[list[int]] = []
    for _ in range(2):
        runs.append([])
        for_choices(lambda choose: runs[-1].append(seeded(choose)), seeds=20, deep=0)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3

    def refused(choose: Choose) -> None:
        assert seeded(choose) != runs[0][4]

    with pytest.raises(AssertionError) as caught:
        for_choices(refused, seeds=20, deep=0)
    first = runs[0].index(runs[0][4])
    assert caught.value.__notes__ == [f"with seed {first}; HYPOTHESIS_PROFILE=deep looks for a smaller case"]


def test_hypothesis_shrinks_what_fails_under_the_profile_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_choices, "DEEP", True)
    found: list[int] = []

    def refused(choose: Choose) -> None:
        found.append(seeded(choose, 1, 100))
        assert found[-1] < 30

    with pytest.raises(AssertionError):
        for_choices(refused, seeds=0, deep=50)
    assert found[-1] == 30
