"""CUDA's caching allocator, modelled: which segments a sequence of allocations takes from the driver.

What fills a card is not what tensors hold but what the allocator has reserved for them: segments, which it cuts into
blocks and keeps when the blocks are free. The rules are those of c10/cuda/CUDACachingAllocator.cpp (torch 2.11 to 2.13,
defaults of PYTORCH_ALLOC_CONF; `expandable_segments` too): sizes are rounded to granules, small and large requests have
pools of their own, the smallest free block of the stream that is large enough is taken and cut, free neighbours merge,
and where the driver has nothing left, segments that are wholly free go back to it before the request is tried again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from sicompiler.facts.memory_blocks import (
    CUDA_RULES,
    AllocatorRules,
    BlockPool,
    MemoryBlock,
    free_addresses,
    head_of,
    reach,
)
from sicompiler.units import MIB

_ADDRESSES = 2**40  # of one expandable segment: the driver has 9/8 of the card, more than any request


@dataclass(frozen=True)
class TraceEntry:
    """Something the allocator did, under the names of `torch.cuda.memory._snapshot()`.

    Attributes:
        action: alloc, free_requested, free_completed, segment_alloc, segment_free, segment_map, segment_unmap.
        address: where.
        size: in bytes; of an allocation what was asked for.
        stream: of the block.
        name: who has the block.
    """

    action: str
    address: int
    size: int
    stream: int
    name: str


@dataclass(frozen=True)
class MemoryPeaks:
    """The most that an allocator has given and taken.

    Attributes:
        live_bytes: of requests, rounded to granules.
        allocated_bytes: of blocks, as `torch.cuda.max_memory_allocated` counts.
        reserved_bytes: of segments, as `torch.cuda.max_memory_reserved` counts.
    """

    live_bytes: int
    allocated_bytes: int
    reserved_bytes: int


class CachingAllocator:
    """The allocator of one device.

    Args:
        rules: its constants.
        capacity_bytes: what the driver gives at most; None for all that is asked for.
        traced: whether to keep what was done in `trace`.

    Attributes:
        live_bytes: requests that are in use, rounded to granules.
        allocated_bytes: blocks in use, as `torch.cuda.memory_allocated` counts: a large block that is a little larger
            than the request counts whole.
        reserved_bytes: segments, as `torch.cuda.memory_reserved` counts.
        peak_live_bytes, peak_allocated_bytes, peak_reserved_bytes: the most of each so far.
    """

    def __init__(
        self, rules: AllocatorRules = CUDA_RULES, capacity_bytes: int | None = None, *, traced: bool = False
    ) -> None:
        self.rules, self.capacity_bytes = rules, capacity_bytes
        self.trace: list[TraceEntry] | None = [] if traced else None
        self.live_bytes = self.allocated_bytes = self.reserved_bytes = 0
        self.peak_live_bytes = self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self.small, self.large = BlockPool(is_small=True), BlockPool(is_small=False)
        self._heads: dict[int, MemoryBlock] = {}  # the first block of every segment, by address
        self._next_address = 2 * MIB

    def allocate(self, nbytes: int, stream: int = 0, name: str = "") -> MemoryBlock:
        """Take a block.

        Args:
            nbytes: how much, at least 1: a tensor without elements asks for nothing.
            stream: which works with it.
            name: who wants it.

        Raises:
            MemoryError: the driver has not enough left, though all that was free has gone back to it.
        """
        size = self.rules.rounded(nbytes)
        pool = self.small if size <= self.rules.small_bytes else self.large
        block = self._best_fit(pool, size, stream)
        if block is None:
            block = self._new_block(pool, size, stream)
        if block.size - size >= self._least_remainder(pool):
            block = self._cut(block, size)
        block.in_use, block.requested, block.name = True, nbytes, name
        self.live_bytes += size
        self.allocated_bytes += block.size
        if self.live_bytes > self.peak_live_bytes:
            self.peak_live_bytes = self.live_bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        if self.trace is not None:
            self.trace.append(TraceEntry("alloc", block.address, nbytes, stream, name))
        return block

    def free(self, block: MemoryBlock) -> None:
        """Give a block back to its pool, together with free neighbours."""
        assert block.in_use, "a block is freed once"
        if self.trace is not None:
            for action in ("free_requested", "free_completed"):
                self.trace.append(TraceEntry(action, block.address, block.requested, block.stream, block.name))
        self.live_bytes -= self.rules.rounded(block.requested)
        self.allocated_bytes -= block.size
        block.in_use, block.requested, block.name = False, 0, ""
        self._join(block)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give segments that are wholly free back to the driver; of expandable ones, every free page."""
        for pool in (self.large, self.small):
            for block in list(pool.blocks.values()):
                if self.rules.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    del self._heads[block.address]
                    self._reserve(-block.size, block, "segment_free")

    @property
    def peaks(self) -> MemoryPeaks:
        """The most of everything so far."""
        return MemoryPeaks(self.peak_live_bytes, self.peak_allocated_bytes, self.peak_reserved_bytes)

    def segments(self) -> Iterator[list[MemoryBlock]]:
        """Every stretch of memory from the driver, as the blocks in it, lower addresses first."""
        for _, head in sorted(self._heads.items()):
            stretch: list[MemoryBlock] = []
            block: MemoryBlock | None = head
            while block is not None:
                if block.mapped:
                    stretch.append(block)
                elif stretch:
                    yield stretch
                    stretch = []
                block = block.after
            if stretch:
                yield stretch

    def free_blocks(self) -> tuple[dict[int, list[tuple[int, int]]], ...]:
        """What is free where, as a value: with it, what is in use and the reserve, all that later requests go by."""
        return tuple({stream: list(sizes) for stream, sizes in pool.sizes.items()} for pool in (self.small, self.large))

    def _least_remainder(self, pool: BlockPool) -> int:
        """The least that is cut off a block; less stays with the request."""
        return self.rules.granule_bytes if pool.is_small or self.rules.expandable else self.rules.small_bytes + 1

    def _best_fit(self, pool: BlockPool, size: int, stream: int) -> MemoryBlock | None:
        blocks = pool.fitting(size, stream)
        best = next(blocks, None)
        if best is not None and self.rules.expandable:
            for block in blocks:  # what a block may grow into counts: a closed one of more bytes may be the better fit
                if reach(block) >= reach(best):
                    break
                best = block
        if best is not None:
            pool.remove(best)
        return best

    def _new_block(self, pool: BlockPool, size: int, stream: int) -> MemoryBlock:
        make = self._grown if self.rules.expandable else self._segment
        block = make(pool, size, stream)
        if block is None:
            self.empty_cache()
            block = make(pool, size, stream)
        if block is None:
            raise MemoryError(
                f"{size} bytes do not fit {self.capacity_bytes}: {self.reserved_bytes} are reserved, of which "
                f"{self.allocated_bytes} are in use"
            )
        return block

    def _segment(self, pool: BlockPool, size: int, stream: int) -> MemoryBlock | None:
        """A segment from the driver; None where it has none."""
        nbytes = self.rules.segment_bytes(size)
        if not self._has(nbytes):
            return None
        block = MemoryBlock(self._place(nbytes), nbytes, stream, pool)
        self._heads[block.address] = block
        self._reserve(nbytes, block, "segment_alloc")
        return block

    def _cut(self, block: MemoryBlock, size: int) -> MemoryBlock:
        """The front of a block; what is left of it is free."""
        front = MemoryBlock(block.address, size, block.stream, block.pool)
        front.follow(block.before, block)
        if front.before is None:
            self._heads[front.address] = front
        block.address += size
        block.size -= size
        block.pool.add(block)
        return front

    def _join(self, block: MemoryBlock) -> None:
        """Merge a block with its free neighbours, mapped ones or not as it is itself."""
        before, after = block.before, block.after
        if before is not None and not before.in_use and before.mapped == block.mapped:
            self._take_out(before)
            block.address, block.size = before.address, block.size + before.size
            block.follow(before.before, after)
            if block.before is None:
                self._heads[block.address] = block
        if after is not None and not after.in_use and after.mapped == block.mapped:
            self._take_out(after)
            block.size += after.size
            block.follow(block.before, after.after)

    def _take_out(self, block: MemoryBlock) -> None:
        if block.mapped:
            block.pool.remove(block)
        else:
            block.pool.unmapped.remove(block)

    def _has(self, nbytes: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + nbytes <= self.capacity_bytes

    def _place(self, nbytes: int) -> int:
        """Addresses for a segment: after all others."""
        address = self._next_address
        self._next_address += -(-nbytes // self.rules.segment_granule_bytes) * self.rules.segment_granule_bytes
        return address

    def _reserve(self, nbytes: int, block: MemoryBlock, action: str) -> None:
        self.reserved_bytes += nbytes
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes = self.reserved_bytes
        if self.trace is not None:
            self.trace.append(TraceEntry(action, block.address, abs(nbytes), block.stream, ""))

    # Expandable segments: addresses for more than the card holds, memory behind them as it is needed

    def _grown(self, pool: BlockPool, size: int, stream: int) -> MemoryBlock | None:
        """Free memory at the end of an expandable segment, grown to a size; None where the driver has none."""
        block = self._room_to_grow(pool, size, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            after = block.after
            assert after is not None
            if not self._map(after, min(size - block.size, after.size)):
                return None
            block = after
        pool.remove(block)
        return block

    def _room_to_grow(self, pool: BlockPool, size: int, stream: int) -> MemoryBlock:
        """The lowest free or unmapped block that, with those that follow, has addresses for a size."""
        for block in pool.unmapped:
            if block.stream == stream:
                before = block.before
                first = before if before is not None and not before.in_use else block
                if free_addresses(first) >= size:
                    return first
        block = MemoryBlock(self._place(_ADDRESSES), _ADDRESSES, stream, pool)
        block.mapped = False
        self._heads[block.address] = block
        pool.unmapped.append(block)
        return block

    def _map(self, block: MemoryBlock, size: int) -> bool:
        """Put memory behind the front of an unmapped block, in whole pages; whether the driver had it."""
        page = self.rules.small_segment_bytes if block.pool.is_small else self.rules.large_segment_bytes
        nbytes = -(-size // page) * page
        if not self._has(nbytes):
            return False
        pool = block.pool
        index = pool.unmapped.index(block)
        if nbytes < block.size:
            rest = MemoryBlock(block.address + nbytes, block.size - nbytes, block.stream, pool)
            rest.mapped = False
            rest.follow(block, block.after)
            pool.unmapped[index] = rest
            block.size = nbytes
        else:
            del pool.unmapped[index]
        block.mapped = True
        self._reserve(nbytes, block, "segment_map")
        self._join(block)
        pool.add(block)
        return True

    def _unmap(self, block: MemoryBlock) -> None:
        """Give the whole pages within a free block back; what lies beside them stays free."""
        pool = block.pool
        page = self.rules.small_segment_bytes if pool.is_small else self.rules.large_segment_bytes
        base = head_of(block).address
        low = base - (base - block.address) // page * page
        high = base + (block.address + block.size - base) // page * page
        if low >= high:
            return
        pool.remove(block)
        end = block.address + block.size
        if block.address < low:
            front = MemoryBlock(block.address, low - block.address, block.stream, pool)
            front.follow(block.before, block)
            if front.before is None:
                self._heads[front.address] = front
            pool.add(front)
        if high < end:
            rear = MemoryBlock(high, end - high, block.stream, pool)
            rear.follow(block, block.after)
            pool.add(rear)
        block.address, block.size, block.mapped = low, high - low, False
        self._reserve(low - high, block, "segment_unmap")
        self._join(block)
        insort(pool.unmapped, block, key=lambda each: each.address)
