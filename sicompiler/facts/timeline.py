"""The timeline: live bytes at every step of a schedule, its peak and who is alive at it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sicompiler.device import device_kind
from sicompiler.facts.lifetimes import Lifetimes
from sicompiler.facts.storages import GraphFacts, Origin


@dataclass(frozen=True)
class Timeline:
    """Live bytes of activations (weights left out) while each node runs.

    Attributes:
        live_bytes: at each position, everything alive while that node runs, its workspace included, and what libraries
            keep (`DeviceKind.library_bytes`).
        workspace_bytes: at each position, what the kernel allocates beside its results.
        crossing_bytes: at each position (and at the end), what is alive *before* that node and needed by it or later.
    """

    live_bytes: npt.NDArray[np.int64]
    workspace_bytes: npt.NDArray[np.int64]
    crossing_bytes: npt.NDArray[np.int64]

    @property
    def peak_bytes(self) -> int:
        """The highest live bytes of the run."""
        return int(self.live_bytes.max(initial=0))

    @property
    def peak_position(self) -> int:
        """The first position at which the peak is reached."""
        return int(self.live_bytes.argmax())


def timeline(
    facts: GraphFacts, lives: Lifetimes, workspace_bytes: npt.NDArray[np.int64], offloaded: Collection[int] = ()
) -> Timeline:
    """Add up what is alive at each step.

    Args:
        facts: sizes of the storages.
        lives: their lifetimes.
        workspace_bytes: per position, a kernel's own allocations.
        offloaded: storages that are offloaded.
    """
    count = len(facts.nodes)
    change = np.zeros(count + 1, dtype=np.int64)
    crossing = np.zeros(count + 2, dtype=np.int64)
    base = device_kind(facts.device_type).library_bytes
    for storage in facts.storages:
        if storage.origin is Origin.WEIGHT or storage.index in offloaded:
            continue
        first, last = lives.first[storage.index], lives.last[storage.index]
        if first < 0 and last >= count:
            base += storage.nbytes
            continue
        change[max(first, 0)] += storage.nbytes
        change[min(last, count - 1) + 1] -= storage.nbytes
        crossing[first + 1] += storage.nbytes
        crossing[min(last, count) + 1] -= storage.nbytes
    live = base + np.cumsum(change[:-1]) + workspace_bytes
    return Timeline(live, workspace_bytes, base + np.cumsum(crossing[:-1]))


def alive_at(facts: GraphFacts, lives: Lifetimes, position: int) -> list[tuple[str, int]]:
    """Name and bytes of every storage that is alive while a node runs, biggest first; weights left out."""
    found = [
        (storage.node, storage.nbytes)
        for storage in facts.storages
        if storage.origin is not Origin.WEIGHT and lives.first[storage.index] <= position <= lives.last[storage.index]
    ]
    return sorted(found, key=lambda row: -row[1])
