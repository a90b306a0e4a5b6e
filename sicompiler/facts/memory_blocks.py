"""What a caching allocator is made of: its constants, blocks of memory, and pools of those that are free."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from sicompiler.units import MIB


@dataclass(frozen=True)
class AllocatorRules:
    """The constants of a caching allocator.

    Attributes:
        granule_bytes: every request is rounded up to a multiple of it.
        small_bytes: the largest request of the small pool; also what a large block may exceed a request by uncut.
        small_segment_bytes: taken from the driver for small requests.
        large_segment_bytes: taken for large requests below `own_segment_bytes`.
        own_segment_bytes: requests from here on get a segment of their size,
        segment_granule_bytes: rounded up to a multiple of this.
        expandable: whether segments grow page by page (`expandable_segments:True`), a page being as large as a
            segment otherwise is. Every block is then cut to size.
    """

    granule_bytes: int = 512
    small_bytes: int = MIB
    small_segment_bytes: int = 2 * MIB
    large_segment_bytes: int = 20 * MIB
    own_segment_bytes: int = 10 * MIB
    segment_granule_bytes: int = 2 * MIB
    expandable: bool = False

    def rounded(self, nbytes: int) -> int:
        """What a request takes of a block."""
        return max(-(-nbytes // self.granule_bytes), 1) * self.granule_bytes

    def segment_bytes(self, size: int) -> int:
        """What the driver is asked for where no free block holds a rounded request."""
        if size <= self.small_bytes:
            return self.small_segment_bytes
        if size < self.own_segment_bytes:
            return self.large_segment_bytes
        return -(-size // self.segment_granule_bytes) * self.segment_granule_bytes


CUDA_RULES = AllocatorRules()
EXPANDABLE_RULES = AllocatorRules(expandable=True)


class MemoryBlock:
    """A piece of a segment, in use or free.

    Attributes:
        address: in the model's own address space.
        size: in bytes.
        requested: bytes that were asked for; 0 while it is free.
        stream: on which it may be used.
        pool: which it goes back to.
        before, after: its neighbours in the segment.
        in_use: whether somebody has it.
        mapped: whether there is memory behind it; False for what an expandable segment may still grow into.
        name: who has it, for people.
    """

    __slots__ = ("address", "after", "before", "in_use", "mapped", "name", "pool", "requested", "size", "stream")

    def __init__(self, address: int, size: int, stream: int, pool: BlockPool) -> None:
        self.address, self.size, self.stream, self.pool = address, size, stream, pool
        self.before: MemoryBlock | None = None
        self.after: MemoryBlock | None = None
        self.requested, self.in_use, self.mapped, self.name = 0, False, True, ""

    def follow(self, before: MemoryBlock | None, after: MemoryBlock | None) -> None:
        """Take a place between two neighbours."""
        self.before, self.after = before, after
        if before is not None:
            before.after = self
        if after is not None:
            after.before = self


class BlockPool:
    """Free blocks of segments of one kind, by stream, smallest first; lower addresses first among equals."""

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.sizes: dict[int, list[tuple[int, int]]] = {}  # by stream: size and address
        self.blocks: dict[int, MemoryBlock] = {}  # by address
        self.unmapped: list[MemoryBlock] = []  # of expandable segments, by address

    def add(self, block: MemoryBlock) -> None:
        """Take a free block."""
        insort(self.sizes.setdefault(block.stream, []), (block.size, block.address))
        self.blocks[block.address] = block

    def remove(self, block: MemoryBlock) -> None:
        """Give a free block away."""
        sizes = self.sizes[block.stream]
        del sizes[bisect_left(sizes, (block.size, block.address))]
        del self.blocks[block.address]

    def fitting(self, size: int, stream: int) -> Iterator[MemoryBlock]:
        """Free blocks that hold so many bytes, smallest first."""
        sizes = self.sizes.get(stream, ())
        for index in range(bisect_left(sizes, (size, 0)), len(sizes)):
            yield self.blocks[sizes[index][1]]


def reach(block: MemoryBlock) -> int:
    """Bytes of a block and of what it may grow into."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def free_addresses(block: MemoryBlock) -> int:
    """Bytes from a block on, mapped or not, up to the next one in use."""
    nbytes = 0
    following: MemoryBlock | None = block
    while following is not None and not following.in_use:
        nbytes += following.size
        following = following.after
    return nbytes


def head_of(block: MemoryBlock) -> MemoryBlock:
    """The first block of its segment."""
    while block.before is not None:
        block = block.before
    return block
