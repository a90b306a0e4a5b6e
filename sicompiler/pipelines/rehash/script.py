"""What the denoiser gave in one full run, given again in a later run of the same call for as long as both are alike.

A later run skips one evaluation with the feature of the one before: that is kept, too, and no part of the graph that
gives it needs to be planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.pipelines.rehash.labels import label_of
from sicompiler.rehash.loop import DenoisingLoop
from sicompiler.rehash.response import probed
from sicompiler.rehash.sketch import Snapshot
from sicompiler.runtime.call import Call

MOST_BYTES = 2**28  # of outputs, which are as large as latents, and of features; of longer runs the beginning is kept


@dataclass(frozen=True)
class _Row:
    """One call of the denoiser.

    Attributes:
        label: of all that it was given.
        output: of it.
        cut: of the smallest feature that was watched, where the next evaluation will be skipped.
        feature: the same; None elsewhere.
    """

    label: str
    output: Any
    cut: tuple[int, ...] = ()
    feature: Snapshot | None = None


class Script:
    """The outputs of the denoiser in one run, each known by the step, the call in it and all that it was given.

    Attributes:
        until: steps for which outputs are given again; the rest is evaluated.
    """

    def __init__(self) -> None:
        self.until = 0
        self._rows: dict[tuple[int, int], _Row] = {}
        self._bytes = self._feature_bytes = 0

    def write(self, loop: DenoisingLoop, call: Call, output: Any) -> None:
        """Put down what a call has given.

        Args:
            loop: that it belongs to, which is learned from.
            call: of the denoiser.
            output: of it.
        """
        leaves = pytree.tree_leaves(output)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return
        self._bytes += sum(leaf.nbytes for leaf in leaves)
        if self._bytes <= MOST_BYTES:
            row = _Row(_label(call), _copied(output, "cpu"), *self._smallest_feature(loop))
            self._rows[loop.step, loop.calls - 1] = row

    def read(self, loop: DenoisingLoop, call: Call) -> Any:
        """What a call that has begun gave in the run that was written down; None where it must be evaluated.

        If the plan of the loop keeps its feature, the loop is given that, too.

        Args:
            loop: that it belongs to.
            call: of the denoiser.
        """
        row = self._rows.get((loop.step, loop.calls - 1)) if loop.step < self.until else None
        if row is None or row.label != _label(call):
            return None
        device = next(x.device for x in pytree.tree_leaves(call.inputs) if isinstance(x, torch.Tensor))
        if loop.plan is not None and loop.step in loop.plan.last_use:
            if row.feature is None or row.cut != loop.plan.cut:
                return None
            loop.keep(loop.calls - 1, _copied(row.feature, device))
        return _copied(row.output, device)

    def _smallest_feature(self, loop: DenoisingLoop) -> tuple[tuple[int, ...], Snapshot | None]:
        """Cut and feature of the call at hand, where the next evaluation will be skipped with it."""
        recorder = loop.recorder
        if recorder is None or loop.setting is None or loop.step + 1 not in probed(len(loop.setting.times)):
            return (), None
        number, cut = min(enumerate(recorder.cuts), key=lambda row: row[1].nbytes)
        feature = recorder.previous(number, loop.calls - 1)
        self._feature_bytes += cut.nbytes
        if feature is None or self._feature_bytes > MOST_BYTES:
            return (), None
        return cut.positions, _copied(feature, "cpu")


def _copied(tensors: Any, device: torch.device | str) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().to(device, copy=True), tensors)


def _label(call: Call) -> str:
    return label_of({"args": list(call.args), **call.kwargs})
