"""Encoders that run as they are: what a call takes is predicted, and a call that would pass the budget does not run.

There is no graph to plan from. But what a model allocates follows from shapes nearly everywhere, so a call is rehearsed
on fake tensors, which have no memory (`pipelines.rehearsal`). The first real call shows what that leaves out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import named_tensors
from sicompiler.capture.quantised import storage_bytes
from sicompiler.capture.results import Opened, open_inputs, tensors_of
from sicompiler.errors import CaptureError
from sicompiler.pipelines.rehearsal import Limit, RehearsalStopped, rehearse


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
        watched: whether the first call is stopped where it would pass the budget; that takes a second or two.
    """

    reason: str
    weights_bytes: int
    inputs_bytes: int
    rehearsed_bytes: int | None = None
    measured_bytes: int | None = None
    stopped_at: str = ""
    watched: bool = True

    def limited(
        self, limit_bytes: int, model: torch.nn.Module, inputs: Any
    ) -> contextlib.AbstractContextManager[object]:
        """A context for a call, in which the first one can't hold more than it may.

        Args:
            limit_bytes: beyond weights and inputs.
            model: the live model.
            inputs: of the call.
        """
        if self.measured_bytes is not None or not self.watched:
            return contextlib.nullcontext()
        return Limit(limit_bytes, {*storage_bytes([*named_tensors(model).values(), *tensors_of(inputs)])})

    def stopped(self, stop: RehearsalStopped) -> None:
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


def key_of(opened: Any, weights_bytes: int) -> Hashable:
    """What tells untouched calls apart: the shapes and values they are called with, and how heavy the model is by now.

    Settings and state of the model are left out: an encoder may run untouched just because it changes them. Calls that
    go on with a cache are one kind whatever its length, as it grows by one token a call.

    Args:
        opened: arguments of a call, as `open_inputs` gives them.
        weights_bytes: of the model.
    """
    held = held_in(opened)
    if held:
        return (tuple(kind for kind in held), weights_bytes)
    leaves, spec = pytree.tree_flatten(opened)
    shapes = [(t.shape, t.dtype, t.device) if isinstance(t, torch.Tensor) else repr(t) for t in leaves]
    return (str(spec), tuple(shapes), weights_bytes)


def held_in(opened: Any) -> list[str]:
    """The classes of objects with tensors among the arguments of a call: a cache to go on with, say."""
    leaves = pytree.tree_leaves(opened, is_leaf=lambda value: isinstance(value, Opened))
    return [leaf.kind for leaf in leaves if isinstance(leaf, Opened)]


def check_inputs(opened: Any) -> None:
    """Refuse to capture a call with objects whose tensors a graph can't take as inputs.

    Args:
        opened: arguments of a call, as `open_inputs` gives them.

    Raises:
        CaptureError: names their class.
    """
    for kind in held_in(opened):
        raise CaptureError(f"it is called with a {kind}, whose tensors are no inputs of a graph")


def untouched_call(
    model: torch.nn.Module,
    own: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    reason: str,
    room_bytes: int,
    device_type: str | None = None,
) -> UntouchedCall:
    """What is known of a call before it runs.

    Args:
        model: the live model.
        own: its own method.
        args: of the call.
        kwargs: of the call.
        reason: why it runs untouched.
        room_bytes: of the budget, for the model.
        device_type: whose allocator rounds weights and inputs up; None: that of the device they are on.
    """
    weights = storage_bytes(named_tensors(model).values(), device_type)
    inputs = storage_bytes(tensors_of((args, kwargs)), device_type)
    rest = sum(nbytes for key, nbytes in inputs.items() if key not in weights)
    known = UntouchedCall(reason, sum(weights.values()), rest)
    if held_in(open_inputs((tuple(args), dict(kwargs)))):
        known.watched = False  # of such calls there are as many as tokens
    else:
        known.rehearsed_bytes = rehearse(model, own, args, kwargs, room_bytes=room_bytes - known.needed_bytes)
    return known
