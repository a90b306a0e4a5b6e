"""Encoders that run as they are: what a call takes is predicted, and a call that would pass the budget does not run.

There is no graph to plan from. But what a model allocates follows from shapes nearly everywhere, so a call is rehearsed
on fake tensors, which have no memory (`adapters.rehearsal`). The first real call shows what that leaves out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.adapters.rehearsal import Limit, Stopped, rehearse
from sicompiler.capture import named_tensors
from sicompiler.capture.quantised import storage_bytes
from sicompiler.capture.results import Opened, tensors_of
from sicompiler.errors import CaptureError


@dataclass
class UntouchedCall:
    """What is known of the untouched calls with inputs of one shape. All bytes are the component's own.

    Attributes:
        reason: why it runs untouched.
        weights_bytes: of the component.
        inputs_bytes: of the tensors it is called with.
        rehearsed_bytes: the most that a rehearsal held beyond them; None where the call can't be rehearsed.
        measured_bytes: the most that a real call held beyond them; None before the first.
        stopped_at: the operator before which a call was stopped.
    """

    reason: str
    weights_bytes: int
    inputs_bytes: int
    rehearsed_bytes: int | None = None
    measured_bytes: int | None = None
    stopped_at: str = ""

    def limited(
        self, limit_bytes: int, model: torch.nn.Module, inputs: Any
    ) -> contextlib.AbstractContextManager[object]:
        """A context for a call, in which the first one can't hold more than it may.

        Args:
            limit_bytes: beyond weights and inputs.
            model: the live model.
            inputs: of the call.
        """
        if self.measured_bytes is not None:
            return contextlib.nullcontext()
        return Limit(limit_bytes, {*storage_bytes([*named_tensors(model).values(), *tensors_of(inputs)])})

    def stopped(self, stop: Stopped) -> None:
        """Note that a call was stopped, and where."""
        self.rehearsed_bytes, self.stopped_at = max(self.rehearsed_bytes or 0, stop.needed_bytes), stop.operator

    @property
    def needed_bytes(self) -> int:
        """What the component takes of the budget while it runs: as measured, else as far as is known."""
        activations = self.rehearsed_bytes or 0 if self.measured_bytes is None else self.measured_bytes
        return self.weights_bytes + self.inputs_bytes + activations

    @property
    def floor_bytes(self) -> int:
        """What has to be left for the component so that its next first call is let run too."""
        return self.weights_bytes + self.inputs_bytes + max(self.rehearsed_bytes or 0, self.measured_bytes or 0)

    @property
    def culprit(self) -> str:
        """What sets how much is needed."""
        if self.measured_bytes is not None:
            return "its weights and the peak of an earlier call"
        if self.stopped_at:
            return f"its weights and {self.stopped_at}, before which a call was stopped"
        return "its weights" if self.rehearsed_bytes is None else "its weights and the peak of a rehearsal"


def check_inputs(opened: Any) -> None:
    """Refuse to capture a call with an object whose tensors a graph can't take as inputs: a cache to go on with, say.

    Args:
        opened: arguments of a call, as `open_results` gives them.

    Raises:
        CaptureError: names its class.
    """
    for leaf in pytree.tree_leaves(opened, is_leaf=lambda value: isinstance(value, Opened)):
        if isinstance(leaf, Opened) and leaf.tensors:
            raise CaptureError(f"it is called with a {leaf.kind}, whose tensors are no inputs of a graph")


def untouched_call(
    model: torch.nn.Module, own: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], reason: str
) -> UntouchedCall:
    """What is known of a call before it runs.

    Args:
        model: the live model.
        own: its own method.
        args: of the call.
        kwargs: of the call.
        reason: why it runs untouched.
    """
    weights, inputs = storage_bytes(named_tensors(model).values()), storage_bytes(tensors_of((args, kwargs)))
    rest = sum(nbytes for key, nbytes in inputs.items() if key not in weights)
    return UntouchedCall(reason, sum(weights.values()), rest, rehearse(model, own, args, kwargs))
