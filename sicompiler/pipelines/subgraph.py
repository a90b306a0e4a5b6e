"""A part of a denoiser's graph, for Step Rehash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from sicompiler.capture import Program
from sicompiler.passes.split_at_cut import full_program, skip_program
from sicompiler.rehash.sketch import PIECE, SCRATCH

Kind = Literal["full", "skip"]


@dataclass(frozen=True)
class GraphPart:
    """A part of a denoiser's graph that runs on its own, or the graph with more outputs (`passes.split_at_cut`).

    Attributes:
        kind: "full" gives the values of the cut too, "skip" starts at them.
        cut: positions in the clean graph.
        snapshots: how many features are held beside its own inputs and outputs while it runs.
        looked_at: whether its features are looked at afterwards, piece by piece: by a guard, or to learn from them.
        beside_bytes: of features of other cuts that are held.
    """

    kind: Kind
    cut: tuple[int, ...]
    snapshots: int
    looked_at: bool = False
    beside_bytes: int = 0

    def scratch_bytes(self, values: Sequence[torch.Tensor]) -> int:
        """What looking at the features takes."""
        return SCRATCH * min(max(v.numel() for v in values), PIECE) if self.looked_at else 0

    def of(self, clean: Program) -> Program:
        """Cut a clean program."""
        return full_program(clean, self.cut) if self.kind == "full" else skip_program(clean, self.cut)
