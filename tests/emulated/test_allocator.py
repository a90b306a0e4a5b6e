"""The allocator's rules, from sizes asked for to bytes reserved: those of PyTorch's CUDACachingAllocator."""

from __future__ import annotations

import pytest
import torch

from tests.emulated import accelerator

KIB, MIB = 1 << 10, 1 << 20


def _take(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="emu")


def _allocated_and_reserved() -> tuple[int, int]:
    return torch.accelerator.memory_allocated(), torch.accelerator.memory_reserved()


# What is asked for in a row, and then: bytes allocated, and the segments that were made for it.
CASES = {
    "a byte takes 512, from a segment of 2 MiB": ([1], 512, [2]),
    "sizes are rounded to 512": ([513, 1024, 1025], 1024 + 1024 + 1536, [2]),
    "1 MiB is small": ([MIB], MIB, [2]),
    "two of 1 MiB fill a segment": ([MIB, MIB], 2 * MIB, [2]),
    "three of 1 MiB take two": ([MIB, MIB, MIB], 3 * MIB, [2, 2]),
    "more than 1 MiB is large, from a segment of 20 MiB": ([MIB + 1], MIB + 512, [20]),
    "small and large have segments of their own": ([1, MIB + 1], MIB + 1024, [2, 20]),
    "large ones share a segment": ([9 * MIB, 9 * MIB, 2 * MIB], 20 * MIB, [20]),
    "a rest of 1 MiB stays with its block": ([19 * MIB, MIB + 1], 20 * MIB + MIB + 512, [20, 20]),
    "a larger rest is split off": ([18 * MIB + 512 * KIB, MIB + 1], 20 * MIB, [20]),
    "just under 10 MiB comes from 20 MiB": ([10 * MIB - 512], 10 * MIB - 512, [20]),
    "10 MiB has a segment of its own": ([10 * MIB], 10 * MIB, [10]),
    "segments of their own are rounded to 2 MiB": ([11 * MIB + 5], 12 * MIB, [12]),
    "large ones use what a segment has left": ([MIB + 1, 11 * MIB, 11 * MIB], 24 * MIB + 512, [20, 12]),
}


@pytest.mark.parametrize("case", CASES)
def test_segments_of_sizes(case: str) -> None:
    sizes, allocated, segments = CASES[case]
    with accelerator.allocator_trace() as trace:
        held = [_take(size) for size in sizes]
    assert [entry.nbytes for entry in trace if entry.action == "segment_alloc"] == [n * MIB for n in segments]
    assert _allocated_and_reserved() == (allocated, sum(segments) * MIB)
    assert len(held) == len(sizes)


ALLOCATED = {
    1: 512,
    512: 512,
    513: 1024,
    MIB: MIB,
    MIB + 1: MIB + 512,
    9 * MIB: 9 * MIB,
    10 * MIB - 1: 10 * MIB,
    11 * MIB: 12 * MIB,  # a rest of up to 1 MiB is part of the block
    13 * MIB + 1: 14 * MIB,
    (12 << 20) - 600: 12 * MIB,
}


@pytest.mark.parametrize("size", ALLOCATED)
def test_bytes_allocated(size: int) -> None:
    held = _take(size)
    assert torch.accelerator.memory_allocated() == ALLOCATED[size]
    del held
    assert torch.accelerator.memory_allocated() == 0


def test_freed_blocks_stay_cached_until_the_cache_is_emptied() -> None:
    held = [_take(1), _take(3 * MIB), _take(30 * MIB)]
    held.clear()
    assert _allocated_and_reserved() == (0, 52 * MIB)
    again = _take(30 * MIB)
    assert _allocated_and_reserved() == (30 * MIB, 52 * MIB)
    torch.accelerator.empty_cache()
    assert _allocated_and_reserved() == (30 * MIB, 30 * MIB)
    del again
    torch.accelerator.empty_cache()
    assert _allocated_and_reserved() == (0, 0)
    assert torch.accelerator.max_memory_reserved() == 52 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    held = [_take(40 * MIB), _take(24 * MIB), _take(32 * MIB)]
    addresses = [tensor.data_ptr() for tensor in held]
    held.clear()
    assert _take(24 * MIB).data_ptr() == addresses[1]
    assert _take(26 * MIB).data_ptr() == addresses[2]
    assert _take(33 * MIB).data_ptr() == addresses[0]


def test_of_equal_blocks_that_with_the_lowest_address_is_taken() -> None:
    held = [_take(30 * MIB) for _ in range(3)]
    first = min(tensor.data_ptr() for tensor in held)
    held.clear()
    assert _take(29 * MIB).data_ptr() == first


def test_a_large_cached_block_is_split_and_neighbours_merge() -> None:
    whole = _take(40 * MIB)
    start = whole.data_ptr()
    del whole
    left, right = _take(16 * MIB), _take(16 * MIB)
    assert (left.data_ptr(), right.data_ptr()) == (start, start + 16 * MIB)
    assert torch.accelerator.memory_reserved() == 40 * MIB
    del left
    held = _take(20 * MIB)  # 16 MiB are free on the left of `right` and 8 on its right
    assert torch.accelerator.memory_reserved() == 60 * MIB
    del right
    assert _take(40 * MIB).data_ptr() == start
    del held


def test_a_segment_with_a_block_in_use_is_not_released() -> None:
    first, second = _take(4 * MIB), _take(4 * MIB)
    del first
    torch.accelerator.empty_cache()
    assert _allocated_and_reserved() == (4 * MIB, 20 * MIB)
    stats = torch.accelerator.memory_stats()
    assert stats["inactive_split.all.current"] == 2
    assert stats["inactive_split_bytes.all.current"] == 16 * MIB
    del second
    torch.accelerator.empty_cache()
    stats = torch.accelerator.memory_stats()
    assert stats["inactive_split_bytes.all.current"] == stats["segment.all.current"] == 0


def test_blocks_belong_to_the_stream_they_were_allocated_on() -> None:
    here = _take(8 * MIB)
    del here
    with torch.Stream("emu"):
        there = _take(8 * MIB)
    assert torch.accelerator.memory_reserved() == 40 * MIB
    again = _take(8 * MIB)
    assert torch.accelerator.memory_reserved() == 40 * MIB
    assert there.data_ptr() != again.data_ptr()


def test_counters() -> None:
    held = [_take(700), _take(2 * MIB)]
    stats = torch.accelerator.memory_stats()
    for pool, blocks, asked, allocated, reserved in (
        ("small_pool", 1, 700, 1024, 2 * MIB),
        ("large_pool", 1, 2 * MIB, 2 * MIB, 20 * MIB),
        ("all", 2, 2 * MIB + 700, 2 * MIB + 1024, 22 * MIB),
    ):
        assert stats[f"allocation.{pool}.current"] == stats[f"segment.{pool}.current"] == blocks
        assert stats[f"requested_bytes.{pool}.current"] == asked
        assert stats[f"allocated_bytes.{pool}.current"] == stats[f"active_bytes.{pool}.current"] == allocated
        assert stats[f"reserved_bytes.{pool}.current"] == reserved
    held.clear()
    assert torch.accelerator.max_memory_allocated() == 2 * MIB + 1024
    torch.accelerator.reset_peak_memory_stats()
    assert torch.accelerator.max_memory_allocated() == 0


def test_a_trace_has_what_memory_snapshots_have() -> None:
    with accelerator.allocator_trace() as trace:
        held = _take(700)
        address = held.data_ptr()
        del held
        torch.accelerator.empty_cache()
    assert [(entry.action, entry.nbytes) for entry in trace] == [
        ("segment_alloc", 2 * MIB),
        ("alloc", 700),
        ("free_requested", 700),
        ("free_completed", 700),
        ("segment_free", 2 * MIB),
    ]
    assert {entry.address for entry in trace} == {address}
