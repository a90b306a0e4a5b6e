"""Random convolutions and products, in any layout and dtype, on one thread and on two, allocate what is predicted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.random_calls import measured

CALLS = 120


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that kernels may use, set."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.pure
def test_no_call_takes_more_than_predicted(threads: int) -> None:
    done = [measured(seed) for seed in range(threads * CALLS, (threads + 1) * CALLS)]
    assert [call for call, took in done if took.measured > took.predicted] == []
