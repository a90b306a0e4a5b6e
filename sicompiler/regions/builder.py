"""Regions: runs of consecutive operators through which one slice at a time can go.

A `RegionBuilder` starts at one operator with one slicing of its result and grows operator by operator, until one does
not commute. Inside, a value is *sliced*, or *whole*: computed once before the loop, because nothing it is
made of is sliced. A whole value (from inside or outside) is narrowed where a sliced operator reads it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

from sicompiler.axes.factor_map import FactorKind, Slicing
from sicompiler.axes.table import Operand, OpSlicing
from sicompiler.regions.halo import Halos, demand
from sicompiler.regions.region import Output, Region, RegionRead
from sicompiler.regions.view import GraphView, narrows_well

HOISTED_BYTES = 2**20  # a value this small is computed whole before the loop rather than slice by slice


class RegionBuilder:
    """A region being grown from `start`, operator by operator.

    Args:
        view: the graph.
        start: position of the first operator.
        seed: slicing of its first result, or None when `inputs` are given.
        inputs: slicings of whole values from outside that start the region (the outer loop).
        hoisted_bytes: values up to this size are computed whole when nothing in them is sliced.
        windows: how many windows the region may run through; None for any number.
    """

    def __init__(
        self,
        view: GraphView,
        start: int,
        seed: Slicing | None,
        *,
        inputs: Mapping[int, Slicing] | None = None,
        hoisted_bytes: int = HOISTED_BYTES,
        windows: int | None = None,
    ) -> None:
        self.view, self.table, self.start = view, view.table, start
        self.inputs = dict(inputs or {})
        first = seed or next(iter(self.inputs.values()))
        self.seed, self.size = first, first.size
        self._seed_position = start if seed is not None else -1
        self.stop = start
        self.sliced: dict[int, OpSlicing] = {}
        self.hoisted: dict[int, None] = {}
        self.turned = 0  # how many operators have been sliced that were hoisted before
        self.added: list[int] = []  # operators sliced since the last time someone emptied this list
        self.reads: dict[tuple[int, int, Slicing], list[int]] = {}
        self.windows = 0  # how many windows the region runs through
        self.coarser = 1  # by how much the units have to grow to take in what did not fit them
        self._hoisted_bytes = hoisted_bytes
        self.max_windows = windows

    def extend(self) -> str | None:
        """Take the next operator into the region.

        Returns:
            None, or the reason why the region ends before it.
        """
        p = self.stop
        transfer = self._wanted(p)
        if isinstance(transfer, str):
            return transfer
        if transfer is None:
            self.hoisted[p] = None
        else:
            if transfer.window is not None and self.windows == self.max_windows:
                return f"{self.windows} windows with a halo are the most of a region here"
            reason = self._meet(p, transfer)
            if reason is not None:
                return reason
            self.sliced[p] = transfer
            self.added.append(p)
            self.windows += transfer.window is not None
        self.stop = p + 1
        return None

    def extend_to(self, stop: int) -> None:
        """Grow to an end that is known to be reached: a region of a plan, found before on the same graph."""
        while self.stop < stop:
            reason = self.extend()
            assert reason is None, f"{self.view.facts.nodes[self.stop].name}, position {self.stop}: {reason}"

    def _wanted(self, p: int) -> OpSlicing | str | None:
        """The slicing of an operator that its sliced operands ask for; None if none is sliced."""
        if p == self._seed_position:
            first = self.table.from_result(p, 0, self.seed)
            if isinstance(first, str):
                self._ask_for_coarser(self.table.coarser(p, True, 0, self.seed))
            return first
        found: OpSlicing | None = None
        for index, (q, r) in enumerate(self.table.operands[p]):
            source = self.sliced.get(q)
            if source is not None:
                slicing = source.results[r] if r < len(source.results) else None
                if slicing is None:
                    return f"{self.view.facts.nodes[q].name} is complete only after the loop"
            elif q in self.inputs:
                slicing = self.inputs[q]
            else:
                continue
            transfer = self.table.from_operand(p, index, slicing)
            if isinstance(transfer, str):
                self._ask_for_coarser(self.table.coarser(p, False, index, slicing))
                return transfer
            if found is not None and transfer != found:
                return "its operands are sliced in different ways"
            found = transfer
        return found

    def _meet(self, p: int, transfer: OpSlicing) -> str | None:
        """Give an operator's other operands the slicing it needs."""
        narrowed = []
        for (q, r), wanted in zip(self.table.operands[p], transfer.operands, strict=True):
            if wanted is not None and q in self.hoisted:
                self._slice_backwards(q, r, wanted, p, transfer)
            source = self.sliced.get(q)
            if source is not None:
                if source.results[r] != wanted:
                    return f"needs {self.view.facts.nodes[q].name} whole, but it is sliced"
            elif q in self.inputs and self.inputs[q] != wanted:
                return f"needs {self.view.facts.nodes[q].name} whole, but it is sliced"
            elif wanted is not None:
                narrowed.append((q, r, wanted))
        for key in narrowed:
            self.reads.setdefault(key, []).append(p)
        return None

    def _slice_backwards(self, q: int, r: int, wanted: Slicing, reader: int, asked: OpSlicing) -> None:
        """Slice a value made inside the region before anyone asked for it, if that is possible and worth it.

        Args:
            q: position of the value.
            r: which of its results.
            wanted: the slicing of it.
            reader: the operator that asks for it.
            asked: all that this operator asks for.
        """
        if not self._worth_slicing(q, r):
            return
        plan: dict[int, OpSlicing] = {}
        if not self._demand(q, r, wanted, plan):
            return
        for position, transfer in [(reader, asked), *plan.items()]:
            for (source, index), slicing in zip(self.table.operands[position], transfer.operands, strict=True):
                if source in plan and plan[source].results[index] != slicing:
                    return  # somebody needs it whole, or sliced in another way
        for position in sorted(plan):
            del self.hoisted[position]
            self.sliced[position] = plan[position]
            self.added.append(position)
            self.turned += 1
            self.windows += plan[position].window is not None
        for position, transfer in plan.items():
            for (source, index), slicing in zip(self.table.operands[position], transfer.operands, strict=True):
                if slicing is not None and source not in self.sliced:
                    self.reads.setdefault((source, index, slicing), []).append(position)

    def _worth_slicing(self, q: int, r: int) -> bool:
        tensor = self.view.tensor((q, r))
        storage = self.view.facts.storages[tensor.storage]
        return storage.nbytes > self._hoisted_bytes and self.view.born[tensor.storage] >= self.start

    def _demand(self, q: int, r: int, wanted: Slicing, plan: dict[int, OpSlicing]) -> bool:
        """Plan to slice a hoisted operator: its big operands, and whatever else has read its result, must follow."""
        transfer = self.table.from_result(q, r, wanted)
        if isinstance(transfer, str):
            self._ask_for_coarser(self.table.coarser(q, True, r, wanted))
            return False
        return self._adopt(q, transfer, plan)

    def _ask_for_coarser(self, factor: int) -> None:
        self.coarser = math.lcm(self.coarser, factor)

    def _adopt(self, q: int, transfer: OpSlicing, plan: dict[int, OpSlicing]) -> bool:
        known = plan.get(q)
        if known is not None:
            return known == transfer
        may = transfer.kind is FactorKind.FREE or (transfer.kind is FactorKind.WINDOW and self.max_windows != 0)
        if not may or any(reader in self.sliced for reader in self.view.lives.readers[q]):
            return False  # the body reads it whole, or narrows it
        plan[q] = transfer
        for (source, index), slicing in zip(self.table.operands[q], transfer.operands, strict=True):
            if source in plan:
                if plan[source].results[index] != slicing:
                    return False
            elif source in self.inputs:
                if self.inputs[source] != slicing:
                    return False
            elif (
                slicing is not None
                and source in self.hoisted
                and self._worth_slicing(source, index)
                and not self._demand(source, index, slicing, plan)
            ):
                return False
        for reader in self.view.lives.readers[q]:
            if reader in self.hoisted and reader not in plan:
                found = [(i, r) for i, (source, r) in enumerate(self.table.operands[reader]) if source == q]
                index, result = found[0]
                slicing = transfer.results[result]
                follow = "not sliced" if slicing is None else self.table.from_operand(reader, index, slicing)
                if isinstance(follow, str) or not self._adopt(reader, follow, plan):
                    return False
        return True

    def last_needed(self, storage: int, stop: int) -> int:
        """Position of the last operator of the body that reads a storage, before `stop`; -1 if none does."""
        found = self.view.storage_readers[storage]
        for p in reversed(found[: bisect_left(found, stop)]):
            if p in self.sliced:
                return p
            if p < self.start:
                break
        return -1

    def is_offloaded(self, value: Operand) -> bool:
        """Whether a whole value comes to the region out of offload memory."""
        storage = self.view.tensor(value).storage
        return storage in self.view.offloaded and self.view.born[storage] < self.start

    def offloads(self, value: Operand) -> bool:
        """Whether a value that the body makes is written into offload memory."""
        return self.view.tensor(value).storage in self.view.offloaded

    def copies(self, key: tuple[int, int, Slicing]) -> bool:
        """Whether a narrowed value is copied slice by slice into a dense tensor."""
        tensor = self.view.tensor((key[0], key[1]))
        if self.is_offloaded((key[0], key[1])):
            return True
        if any(self.view.clones_storage[p] for p in self.reads[key]):
            return True
        if key[2].outer == 1 and all(self.view.reads_strided[p] for p in self.reads[key]):
            return False
        return not narrows_well(tensor, key[2])

    def halos(self) -> Halos | None:
        """What the values of the body hold if the region ends here; None without a window, where slices are all."""
        if not self.windows:
            return None
        written = [value for p in self.sliced for value, slicing in self.live_out(p, self.stop) if slicing is not None]
        return demand(self.table, self.sliced, written)

    def region(self) -> Region:
        """The region as grown so far."""
        stop, halos = self.stop, self.halos()
        outputs: list[Output] = []
        for p in sorted(self.sliced):
            for value, slicing in self.live_out(p, stop):
                taken = {self.view.tensor(o.reuses).storage for o in outputs if o.reuses is not None}
                reuses = None if slicing is None else self.reusable(value, slicing, stop, taken, halos)
                outputs.append(Output(value, slicing, reuses))
        reads = tuple(
            RegionRead(
                (q, r),
                slicing,
                min(ps),
                max(max(ps), self.last_needed(self.view.tensor((q, r)).storage, stop)),
                self.copies((q, r, slicing)),
            )
            for (q, r, slicing), ps in self.reads.items()
        )
        return Region(
            self.start,
            stop,
            self.seed,
            self.size,
            dict(sorted(self.sliced.items())),
            tuple(sorted(self.hoisted)),
            reads,
            tuple(outputs),
            halos,
        )

    def live_out(self, p: int, stop: int) -> list[tuple[Operand, Slicing | None]]:
        """Values that a sliced operator makes and that are needed at or after `stop`."""
        found = []
        for storage in self.view.made[p]:
            if self.view.lives.last[storage] >= stop:
                index = next(i for i, t in enumerate(self.view.facts.tensors[p]) if t.storage == storage)
                found.append(((p, index), self.sliced[p].results[index]))
        return found

    def reusable(
        self, value: Operand, slicing: Slicing, stop: int, taken: set[int], halos: Halos | None = None
    ) -> Operand | None:
        """An input that dies in the region and whose slices lie where the slices of `value` will lie.

        Args:
            value: what is to be written.
            slicing: where the axis sits in it.
            stop: where the region ends.
            taken: storages that other outputs have taken over already.
            halos: of the region. A halo still has to be read when the slice before has been written.
        """
        tensor, tensors, nbytes_of = self.view.tensor(value), self.view.facts.tensors, self.view.nbytes
        if not tensor.is_dense:
            return None
        unit, nbytes = tensor.stride[slicing.dim] * slicing.inner, nbytes_of[tensor.storage]
        found = [
            ((q, r), source)
            for q, r, other in self.reads
            for source in (tensors[q][r],)
            if nbytes_of[source.storage] == nbytes
            and source.storage not in taken
            and source.storage not in self.view.offloaded
            and source.dtype == tensor.dtype
            and source.is_dense
            and source.numel == tensor.numel
            and source.stride[other.dim] * other.inner == unit
            and self.view.dies_before(source.storage, stop)
        ]
        if not found or self.offloads(value):
            return None
        if self._only_moves(value[0]) or self._stores_a_view():
            return None
        if halos is not None and not halos.own[value].is_own_part(slicing.size * slicing.inner):
            return None
        kept = (v for v, source in found if self._read_only_in_slices(source.storage, unit, stop, halos))
        return next(kept, None)

    def _stores_a_view(self) -> bool:
        """Whether a slice that is stored once the body is done may be a view of what the body writes over."""
        offloaded, view = self.view.offloaded, self.view
        return bool(offloaded) and any(
            view.may_be_view[p] and not offloaded.isdisjoint(view.made[p]) for p in self.sliced
        )

    def _only_moves(self, p: int) -> bool:
        """Whether a value is nothing but a rearranged slice of a whole value.

        A reshape that copies the whole value may be a view of a slice: writing it over what it is a view of would be
        wrong.
        """
        while p in self.sliced:
            if not self.view.may_be_view[p]:
                return False
            p = self.table.operands[p][0][0]
        return True

    def _read_only_in_slices(self, storage: int, unit: int, stop: int, halos: Halos | None) -> bool:
        """Whether the loop touches a storage only through slices that lie `unit` elements apart, without a halo.

        What is hoisted may read it whole: that is done before the first slice is written.
        """
        keys = [key for key in self.reads if self.view.tensor((key[0], key[1])).storage == storage]
        if any(self.view.tensor((q, r)).stride[s.dim] * s.inner != unit for q, r, s in keys):
            return False
        if halos is not None and not all(halos.reads[(q, r), s].is_own_part(s.size * s.inner) for q, r, s in keys):
            return False
        for p in self.view.storage_readers[storage]:
            if self.start <= p < stop and p in self.sliced:
                for (q, r), slicing in zip(self.table.operands[p], self.sliced[p].operands, strict=True):
                    whole = q not in self.sliced and self.view.tensor((q, r)).storage == storage
                    if whole and slicing is None:
                        return False
        return True
