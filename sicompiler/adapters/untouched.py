"""Encoders that run as they are: what a call takes is predicted, and a call that would pass the budget does not run.

There is no graph to plan from. But what a model allocates follows from the shapes alone as long as its Python code does
not look at values, so a call is rehearsed on fake tensors, which have no memory. What a rehearsal does not see (buffers
inside kernels) the first real call shows; where a rehearsal fails, the first call is the first that is known of.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.utils import stateless
from torch.utils._python_dispatch import TorchDispatchMode

from sicompiler.capture import named_tensors
from sicompiler.capture.quantised import storage_bytes, stored
from sicompiler.capture.results import Opened, tensors_of
from sicompiler.entry import FORWARD, entry_module
from sicompiler.errors import CaptureError

log = logging.getLogger("sicompiler")


@dataclass
class UntouchedCall:
    """What is known of the untouched calls with inputs of one shape. All bytes are the component's own.

    Attributes:
        reason: why it runs untouched.
        weights_bytes: of the component.
        inputs_bytes: of the tensors it is called with.
        rehearsed_bytes: the most that a rehearsal held beyond them; None where the call can't be rehearsed.
        measured_bytes: the most that a real call held beyond them; None before the first.
    """

    reason: str
    weights_bytes: int
    inputs_bytes: int
    rehearsed_bytes: int | None = None
    measured_bytes: int | None = None

    @property
    def activations_bytes(self) -> int:
        """The most that a call holds beside its weights and inputs: as measured, else as rehearsed."""
        return (self.rehearsed_bytes or 0) if self.measured_bytes is None else self.measured_bytes

    @property
    def needed_bytes(self) -> int:
        """What the component takes of the budget while it runs, as far as is known."""
        return self.weights_bytes + self.inputs_bytes + self.activations_bytes

    @property
    def culprit(self) -> str:
        """What sets how much is needed."""
        if self.measured_bytes is not None:
            return "its weights and the peak of an earlier call"
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


class _Level(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, for as long as they live.

    Args:
        known: storages that were there before.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.level = self.peak = 0
        self._known, self._living = known, dict[int, weakref.ref[Any]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                for tensor in stored(leaf):
                    self._note(tensor)
        self.peak = max(self.peak, self.level)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._known or key in self._living:
            return

        def released(_: object) -> None:
            self.level -= nbytes
            self._living.pop(key, None)

        self._living[key] = weakref.ref(storage, released)
        self.level += nbytes


_shapes: Any = ShapeEnv  # lets a model assert what it can't know


def rehearse(
    model: torch.nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int | None:
    """The most bytes that a call holds beside weights and inputs, by running it on fake tensors.

    Args:
        model: the live model; plain attributes that the call changes are put back.
        call: the model's own method.
        args: of the call.
        kwargs: of the call.

    Returns:
        None where it can't be run so: it looks at the values of tensors, or a kernel says nothing about shapes.
    """
    tensors = named_tensors(model)
    given = next((t.fake_mode for t in tensors.values() if isinstance(t, FakeTensor)), None)
    mode = given or FakeTensorMode(allow_non_fake_inputs=True, shape_env=_shapes(), static_shapes=True)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)

    try:
        weights = {name: fake(tensor) for name, tensor in tensors.items()}
        fake_args, fake_kwargs = pytree.tree_map_only(torch.Tensor, fake, (tuple(args), dict(kwargs)))
        inputs = (leaf for leaf in pytree.tree_leaves((fake_args, fake_kwargs)) if isinstance(leaf, torch.Tensor))
        level = _Level({*storage_bytes(weights.values()), *storage_bytes(inputs)})
        with (
            torch.no_grad(),
            entry_module(model, FORWARD),
            stateless._reparametrize_module(model, weights, tie_weights=True),
            mode,
            level,
        ):
            call(*fake_args, **fake_kwargs)
    except Exception as error:  # whatever a model does with tensors that have no data
        log.debug("%s can't be rehearsed: %s: %s", type(model).__name__, type(error).__name__, error)
        return None
    return level.peak
