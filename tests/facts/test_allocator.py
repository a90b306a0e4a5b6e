"""The model of CUDA's caching allocator: cases from its source and its documentation, and what must hold always."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sicompiler.facts.allocator import CachingAllocator
from sicompiler.facts.memory_blocks import CUDA_RULES, EXPANDABLE_RULES, AllocatorRules, MemoryBlock
from sicompiler.units import GIB, KIB, MIB

pytestmark = pytest.mark.pure

# One request to an empty allocator: what is live, what the block takes, what the driver gave.
SINGLE = [
    (1, 512, 512, 2 * MIB),
    (512, 512, 512, 2 * MIB),
    (513, 1024, 1024, 2 * MIB),
    (MIB, MIB, MIB, 2 * MIB),  # the largest small request
    (MIB + 1, MIB + 512, MIB + 512, 20 * MIB),  # the smallest large one
    (10 * MIB - 512, 10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
    (10 * MIB, 10 * MIB, 10 * MIB, 10 * MIB),  # from here on segments are of the size of the request,
    (10 * MIB + 1, 10 * MIB + 512, 10 * MIB + 512, 12 * MIB),  # rounded up to 2 MiB
    (11 * MIB, 11 * MIB, 12 * MIB, 12 * MIB),  # a remainder of 1 MiB is not cut off
    (11 * MIB - 512, 11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # one of more is
]


@pytest.mark.parametrize(("nbytes", "live", "allocated", "reserved"), SINGLE)
def test_one_request(nbytes: int, live: int, allocated: int, reserved: int) -> None:
    memory = CachingAllocator()
    memory.allocate(nbytes)
    assert (memory.live_bytes, memory.allocated_bytes, memory.reserved_bytes) == (live, allocated, reserved)


def test_small_requests_share_segments_of_2_mib_and_large_ones_of_20() -> None:
    memory = CachingAllocator()
    for _ in range(4):
        memory.allocate(512 * KIB)
    assert memory.reserved_bytes == 2 * MIB
    memory.allocate(1)
    assert memory.reserved_bytes == 4 * MIB
    for _ in range(4):
        memory.allocate(5 * MIB)
    assert memory.reserved_bytes == 24 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    memory = CachingAllocator()
    blocks = [memory.allocate(size * MIB) for size in (40, 20, 30)]
    addresses = [block.address for block in blocks]
    for block in blocks:
        memory.free(block)
    assert memory.allocate(25 * MIB).address == addresses[2]
    assert memory.reserved_bytes == 90 * MIB


def test_what_is_cut_off_serves_later_requests() -> None:
    memory = CachingAllocator()
    memory.free(memory.allocate(40 * MIB))
    first, second = memory.allocate(24 * MIB), memory.allocate(16 * MIB)
    assert (second.address - first.address, memory.reserved_bytes) == (24 * MIB, 40 * MIB)


def test_free_neighbours_merge_and_others_do_not() -> None:
    memory = CachingAllocator()
    memory.free(memory.allocate(60 * MIB))
    low, middle, _ = (memory.allocate(20 * MIB) for _ in range(3))
    memory.free(low)
    memory.free(middle)
    memory.allocate(40 * MIB)
    assert memory.reserved_bytes == 60 * MIB  # the first 40 in one piece

    memory = CachingAllocator()
    apart = [memory.allocate(20 * MIB) for _ in range(2)]
    for block in apart:
        memory.free(block)
    memory.allocate(40 * MIB)
    assert memory.reserved_bytes == 80 * MIB  # segments of their own never merge


def test_a_block_belongs_to_its_stream() -> None:
    memory = CachingAllocator()
    memory.free(memory.allocate(16 * MIB, stream=1))
    memory.allocate(16 * MIB, stream=0)
    assert memory.reserved_bytes == 32 * MIB


def test_segments_in_which_something_is_in_use_stay() -> None:
    memory = CachingAllocator()
    kept, gone, whole = memory.allocate(5 * MIB), memory.allocate(5 * MIB), memory.allocate(30 * MIB)
    memory.free(gone)
    memory.free(whole)
    memory.empty_cache()
    assert (memory.reserved_bytes, memory.peak_reserved_bytes) == (20 * MIB, 50 * MIB)
    memory.free(kept)
    memory.empty_cache()
    assert memory.reserved_bytes == 0


def test_at_the_capacity_free_segments_go_back_before_a_request_fails() -> None:
    memory = CachingAllocator(capacity_bytes=64 * MIB)
    memory.free(memory.allocate(40 * MIB))
    held = memory.allocate(50 * MIB)
    assert memory.reserved_bytes == 50 * MIB
    with pytest.raises(MemoryError, match="do not fit"):
        memory.allocate(20 * MIB)
    memory.free(held)
    memory.allocate(60 * MIB)


def test_fragmentation_reserves_what_nobody_holds() -> None:
    """Every second block of a segment in use: half of it is free, and of no use to a larger request."""
    memory = CachingAllocator()
    memory.free(memory.allocate(96 * MIB))
    blocks = [memory.allocate(12 * MIB) for _ in range(8)]
    for block in blocks[::2]:
        memory.free(block)
    memory.allocate(16 * MIB)
    assert (memory.allocated_bytes, memory.reserved_bytes) == (64 * MIB, 112 * MIB)


def test_expandable_segments_grow_by_pages_and_have_no_such_gaps() -> None:
    memory = CachingAllocator(EXPANDABLE_RULES)
    memory.allocate(1)
    assert memory.reserved_bytes == 2 * MIB  # a page of the small pool
    first = memory.allocate(30 * MIB)
    assert memory.reserved_bytes == 42 * MIB  # two of the large one
    second = memory.allocate(10 * MIB)
    assert (second.address - first.address, memory.reserved_bytes) == (30 * MIB, 42 * MIB)
    memory.free(first)
    memory.free(second)
    memory.allocate(50 * MIB)  # what is free grows at its end
    assert memory.reserved_bytes == 62 * MIB


def test_expandable_segments_give_free_pages_back_from_the_middle() -> None:
    memory = CachingAllocator(EXPANDABLE_RULES)
    _, middle, _ = (memory.allocate(size * MIB) for size in (10, 60, 10))
    assert memory.reserved_bytes == 80 * MIB
    memory.free(middle)
    memory.empty_cache()
    assert memory.reserved_bytes == 40 * MIB  # pages 1 and 2 of 0 to 3
    assert [sum(block.size for block in stretch) for stretch in memory.segments()] == [20 * MIB, 20 * MIB]
    memory.allocate(40 * MIB)
    assert (memory.reserved_bytes, memory.allocated_bytes) == (80 * MIB, 60 * MIB)


SIZES = st.one_of(st.integers(1, 2 * MIB), st.integers(1, 64 * MIB), st.sampled_from([512, MIB, 10 * MIB, 20 * MIB]))
STEPS = st.lists(st.tuples(SIZES, st.integers(0, 1), st.lists(st.integers(0, 50), max_size=3)), max_size=60)


def _run(memory: CachingAllocator, steps: list[tuple[int, int, list[int]]]) -> list[MemoryBlock]:
    """Allocate and release, and check what must hold after every step; what is alive at the end."""
    alive: list[MemoryBlock] = []
    for nbytes, stream, released in steps:
        alive.append(memory.allocate(nbytes, stream))
        for number in released:
            if alive:
                memory.free(alive.pop(number % len(alive)))
        assert memory.reserved_bytes >= memory.allocated_bytes >= memory.live_bytes
        assert memory.allocated_bytes == sum(block.size for block in alive)
    return alive


@pytest.mark.parametrize("rules", [CUDA_RULES, EXPANDABLE_RULES], ids=["segments", "expandable"])
@given(steps=STEPS)
def test_blocks_partition_segments_and_all_of_it_can_be_given_back(
    rules: AllocatorRules, steps: list[tuple[int, int, list[int]]]
) -> None:
    memory = CachingAllocator(rules, traced=True)
    alive = _run(memory, steps)
    stretches = list(memory.segments())
    assert sum(block.size for stretch in stretches for block in stretch) == memory.reserved_bytes
    for stretch in stretches:
        for block, after in itertools.pairwise(stretch):
            assert block.address + block.size == after.address
            assert block.in_use or after.in_use, "free neighbours merge"
    again = CachingAllocator(rules, traced=True)
    _run(again, steps)
    assert again.trace == memory.trace  # the same every time
    for block in alive:
        memory.free(block)
    memory.empty_cache()
    assert (memory.reserved_bytes, memory.allocated_bytes, memory.live_bytes) == (0, 0, 0)


@given(steps=STEPS)
def test_expandable_segments_hold_less_than_a_page_a_pool_and_stream_beyond_the_largest_gap(
    steps: list[tuple[int, int, list[int]]],
) -> None:
    """Without a release in between they reserve what is live, up to the page that is begun in each pool."""
    memory = CachingAllocator(EXPANDABLE_RULES)
    for nbytes, stream, _ in steps:
        memory.allocate(nbytes, stream)
    assert memory.reserved_bytes - memory.live_bytes < 2 * (2 + 20) * MIB


def test_a_hundred_thousand_events_take_well_under_a_second() -> None:
    draw = random.Random(0)
    sizes = [int(2 ** draw.uniform(9, 28)) for _ in range(50_000)]
    memory, alive = CachingAllocator(), list[MemoryBlock]()
    began = time.process_time()
    for nbytes in sizes:
        alive.append(memory.allocate(nbytes))
        if len(alive) > 200:
            memory.free(alive.pop(draw.randrange(len(alive))))
    assert time.process_time() - began < 2  # 0.25 s on an idle core
    assert 0 < memory.peak_reserved_bytes < 100 * GIB
