"""Segments that grow, as under PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."""

from __future__ import annotations

import pytest
import torch

from tests.emulated import accelerator

MIB = 1 << 20


@pytest.fixture(autouse=True)
def expandable() -> None:
    accelerator.configure(capacity=200 * MIB, expandable=True)


def _take(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="emu")


def test_memory_is_mapped_in_pieces_of_2_and_20_mib() -> None:
    held = [_take(1), _take(3 * MIB), _take(30 * MIB)]
    # 3 and 30 MiB lie in one segment, of two pieces
    assert torch.accelerator.memory_reserved() == (2 + 40) * MIB
    assert held[2].data_ptr() == held[1].data_ptr() + 3 * MIB


def test_a_free_block_at_the_end_grows() -> None:
    first = _take(30 * MIB)
    start = first.data_ptr()
    del first
    with accelerator.allocator_trace() as trace:
        assert _take(70 * MIB).data_ptr() == start
    assert [(entry.action, entry.nbytes) for entry in trace][:2] == [("segment_map", 40 * MIB), ("alloc", 70 * MIB)]
    assert torch.accelerator.memory_reserved() == 80 * MIB


def test_blocks_are_split_down_to_512_bytes() -> None:
    held = [_take(19 * MIB + 512 * 1024), _take(300 * 1024)]
    assert torch.accelerator.memory_allocated() == 19 * MIB + 812 * 1024
    assert torch.accelerator.memory_reserved() == 22 * MIB  # the second is small
    assert len(held) == 2


def test_whole_pieces_inside_a_segment_are_given_back() -> None:
    first, middle, last = _take(10 * MIB), _take(60 * MIB), _take(10 * MIB)
    start = middle.data_ptr()
    del middle
    torch.accelerator.empty_cache()
    assert torch.accelerator.memory_reserved() == 40 * MIB  # of 80: the two pieces in the middle are free
    assert _take(60 * MIB).data_ptr() == start
    assert torch.accelerator.memory_reserved() == 80 * MIB
    del first, last
    torch.accelerator.empty_cache()
    assert torch.accelerator.memory_reserved() == 0


def test_pieces_that_would_be_a_hole_elsewhere_are_used() -> None:
    """Ten blocks with gaps between them: a request as large as all gaps together fits once the gaps are given back."""
    held = [_take(20 * MIB) for _ in range(10)]
    del held[::2]
    assert _take(100 * MIB).numel() == 100 * MIB
    assert torch.accelerator.memory_reserved() == 200 * MIB
    assert torch.accelerator.memory_stats()["num_alloc_retries"] == 1


def test_beyond_the_capacity_memory_runs_out() -> None:
    held = _take(150 * MIB)
    with pytest.raises(torch.OutOfMemoryError):
        _take(60 * MIB)
    assert torch.accelerator.memory_allocated() == 150 * MIB
    del held
    assert _take(200 * MIB).numel() == 200 * MIB


def test_values_survive_growth_and_release() -> None:
    kept = torch.arange(3 * MIB, device="emu")
    held = torch.ones(10 * MIB, device="emu")
    del held
    torch.accelerator.empty_cache()
    more = torch.full((8 * MIB,), 3.0, device="emu")
    assert torch.equal(kept.cpu(), torch.arange(3 * MIB))
    assert torch.equal(more.cpu(), torch.full((8 * MIB,), 3.0))
