"""What the denoiser gave in one full run, given again in a later run of the same call for as long as both are alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.pipelines.rehash.labels import label_of
from sicompiler.rehash.loop import DenoisingLoop
from sicompiler.runtime.call import Call

MOST_BYTES = 2**28  # outputs are as large as latents; of longer runs the beginning is kept


class Script:
    """The outputs of the denoiser in one run, each known by the step, the call in it and all that it was given.

    Attributes:
        until: steps for which outputs are given again; the rest is evaluated.
    """

    def __init__(self) -> None:
        self.until = 0
        self._rows: dict[tuple[int, int], tuple[str, Any]] = {}
        self._bytes = 0

    def write(self, loop: DenoisingLoop, call: Call, output: Any) -> None:
        """Put down what a call has given.

        Args:
            loop: that it belongs to.
            call: of the denoiser.
            output: of it.
        """
        leaves = pytree.tree_leaves(output)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return
        self._bytes += sum(leaf.nbytes for leaf in leaves)
        if self._bytes <= MOST_BYTES:
            kept = pytree.tree_map(lambda leaf: leaf.detach().to("cpu", copy=True), output)
            self._rows[loop.step, loop.calls - 1] = _label(call), kept

    def read(self, loop: DenoisingLoop, call: Call) -> Any:
        """What a call that has begun gave in the run that was written down; None where it must be evaluated.

        Args:
            loop: that it belongs to.
            call: of the denoiser.
        """
        row = self._rows.get((loop.step, loop.calls - 1)) if loop.step < self.until else None
        if row is None or row[0] != _label(call):
            return None
        device = next(x.device for x in pytree.tree_leaves(call.inputs) if isinstance(x, torch.Tensor))
        return pytree.tree_map(lambda leaf: leaf.to(device, copy=True), row[1])


def _label(call: Call) -> str:
    return label_of({"args": list(call.args), **call.kwargs})
