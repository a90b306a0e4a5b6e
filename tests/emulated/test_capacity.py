"""A card of exactly so many bytes: what fits, what raises, and what is left after that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.emulated import accelerator

MIB = 1 << 20


def _take(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="emu")


def test_every_byte_of_the_capacity_can_be_used_and_none_beyond() -> None:
    accelerator.configure(capacity=64 * MIB)
    held = [_take(40 * MIB), _take(24 * MIB)]
    assert torch.accelerator.get_memory_info() == (0, 64 * MIB)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        _take(1)
    held.pop()
    with pytest.raises(torch.OutOfMemoryError, match="total capacity of 64 MiB of which 24 MiB is free"):
        _take(24 * MIB + 1)
    assert torch.accelerator.memory_stats()["num_ooms"] == 2


def test_cached_blocks_are_released_before_memory_runs_out() -> None:
    accelerator.configure(capacity=64 * MIB)
    held = _take(40 * MIB)
    del held
    other = _take(60 * MIB)
    stats = torch.accelerator.memory_stats()
    assert torch.accelerator.memory_reserved() == 60 * MIB
    assert (stats["num_alloc_retries"], stats["num_ooms"]) == (1, 0)
    del other


def test_memory_runs_out_though_enough_is_free_where_it_lies_in_pieces() -> None:
    accelerator.configure(capacity=40 * MIB)
    held = [_take(4 * MIB) for _ in range(10)]
    del held[::2]
    assert torch.accelerator.memory_allocated() == 20 * MIB
    with pytest.raises(torch.OutOfMemoryError, match="20 MiB is reserved by PyTorch but unallocated"):
        _take(8 * MIB)


def test_a_retry_waits_for_blocks_that_other_streams_still_use() -> None:
    accelerator.configure(capacity=40 * MIB, order="side-last")
    side = torch.Stream("emu")
    held = _take(30 * MIB).zero_()
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        total = held.sum()
    held.record_stream(side)
    del held
    assert accelerator.queued() > 0
    assert _take(30 * MIB).numel() == 30 * MIB
    assert accelerator.queued() == 0
    torch.accelerator.synchronize()
    assert total.item() == 0


def test_a_model_that_runs_out_gives_everything_back_and_runs_again() -> None:
    model = nn.Sequential(*(nn.Conv2d(12, 12, 1) for _ in range(3))).eval()
    x = torch.randn(1, 12, 512, 512)  # 12 MiB
    with torch.inference_mode():
        expected = model(x)
        model.to("emu")
        on_device = x.to("emu")
        before = torch.accelerator.memory_allocated()
        accelerator.configure(capacity=36 * MIB)  # a segment of weights, the input and two results take 2 + 36
        with pytest.raises(torch.OutOfMemoryError):
            model(on_device)
        assert torch.accelerator.memory_allocated() == before
        accelerator.configure(capacity=38 * MIB)
        assert torch.equal(model(on_device).cpu(), expected)


def test_memory_info_is_what_the_capacity_leaves() -> None:
    accelerator.configure(capacity=100 * MIB)
    held = _take(3 * MIB)
    assert torch.accelerator.get_memory_info() == (80 * MIB, 100 * MIB)
    del held
    assert torch.accelerator.get_memory_info() == (80 * MIB, 100 * MIB)
    torch.accelerator.empty_cache()
    assert torch.accelerator.get_memory_info() == (100 * MIB, 100 * MIB)
