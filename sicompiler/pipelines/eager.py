"""What a model takes that runs as it is: its call under fake tensors, counted as Python's own lifetimes have it.

A graph frees a value after its last use. Python frees it when the last name of it is gone: a local variable of a block
keeps its input for as long as the block runs. So what eager Python peaks at is not the peak of the unsliced graph, and
can't be read off a graph at all. It can be watched, though: the call runs on fake tensors, every storage counts from
the operator that makes it until Python lets go of it, and each kernel adds the workspace that its row says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.utils._pytree as pytree
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sicompiler.capture import named_tensors
from sicompiler.capture.quantised import storage_bytes
from sicompiler.capture.results import tensors_of
from sicompiler.collector import frozen_gc
from sicompiler.device import device_kind, rounded
from sicompiler.facts.calls import bind, flatten_tensors
from sicompiler.facts.storages import fact_of
from sicompiler.facts.workspace.table import workspace_bytes
from sicompiler.pipelines.footprints import Footprints
from sicompiler.pipelines.rehearsal import REAL_BYTES, Rehearsal, rehearsed

aten = torch.ops.aten

# One kernel on the device, several operators under fake tensors, which have none.
ONE_KERNEL: Mapping[Callable[..., Any], OpOverload] = {
    functional.scaled_dot_product_attention: aten.scaled_dot_product_attention.default,
}


class _Eager(Rehearsal):
    """A rehearsal that counts kernels as well.

    Args:
        device_type: whose allocator and kernels to count with: a row of `sicompiler.device`.
        guess: the value of everything that is asked for and isn't there.
        real_bytes: how much may be made of real tensors at any time.
        known: storages that were there before.
        mode: of the fake tensors.
    """

    def __init__(self, device_type: str, guess: int, real_bytes: int, known: set[int], mode: FakeTensorMode) -> None:
        super().__init__(guess, real_bytes, known, mode)
        self._device_type = device_type
        self._granule = device_kind(device_type).granule_bytes
        self._inside = False  # a kernel that is counted as one

    def storage_bytes(self, storage: torch.UntypedStorage) -> int:
        """As the allocator rounds."""
        return rounded(super().storage_bytes(storage), self._granule)

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count what an operator made, and what its kernel had beside."""
        if self._inside:
            return
        super().note(func, args, kwargs, result)
        if isinstance(func, OpOverload):
            named = bind(func, args, kwargs)
            operands = [fact_of(t) for t in flatten_tensors(named, lambda a: isinstance(a, torch.Tensor))]
            results = [fact_of(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if results:
                extra = workspace_bytes(func, operands, results, self._device_type, named)
                self.peak = max(self.peak, self.level + extra)

    def born(self, tensor: torch.Tensor) -> None:
        """Count a tensor with memory of its own."""
        self._note(tensor)

    def reach(self, nbytes: int) -> None:
        """Count what is held for a while, beyond what is there."""
        self.peak = max(self.peak, self.level + nbytes)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], int]]:
        """A context that gives a function: how much was held at most since it began, beyond what was there."""
        before, level = self.peak, self.level
        self.peak = level
        try:
            yield lambda: self.peak - level
        finally:
            self.peak = max(self.peak, before)

    @contextlib.contextmanager
    def one_kernel(self) -> Iterator[None]:
        """Leave out what happens within."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False


class _Kernels(TorchFunctionMode):
    """Tells a rehearsal of functions that are one kernel on the device, and leaves out calls that it knows."""

    def __init__(self, eager: _Eager) -> None:
        super().__init__()
        self._eager = eager

    def __enter__(self) -> Self:
        """Enter."""
        self._footprints = Footprints(self._eager.fake_mode)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, or do as if."""
        kwargs = kwargs or {}
        eager, footprints = self._eager, self._footprints
        call = footprints.call(func, args, kwargs)
        if call is None:
            return self._run(func, args, kwargs)
        known = footprints.known(call)
        if known is not None:
            eager.reach(known.peak_bytes)
            return known.results.again(call.operands, eager.born)
        if footprints.has_met(call):
            return self._run(func, args, kwargs)
        there = eager.there()
        with eager.watched() as held:
            result = self._run(func, args, kwargs)
            peak_bytes = held()
        footprints.learn(call, args, kwargs, result, peak_bytes, there)
        return result

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        target = ONE_KERNEL.get(func)
        if target is None:
            return func(*args, **kwargs)
        with self._eager.one_kernel():
            result = func(*args, **kwargs)
        self._eager.note(target, args, kwargs, result)
        return result


def eager_peak_bytes(
    model: torch.nn.Module,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    device_type: str,
) -> int | None:
    """The peak of an untouched call, weights and inputs included.

    Args:
        model: the live model; plain attributes that the call changes are put back.
        call: the model's own method.
        args: of the call.
        kwargs: of the call.
        device_type: whose allocator and kernels to count with: a row of `sicompiler.device`.

    Returns:
        None where it can't be run on fake tensors.
    """

    def counted(rehearsal: Rehearsal) -> contextlib.AbstractContextManager[Any]:
        assert isinstance(rehearsal, _Eager)
        return _Kernels(rehearsal)

    with frozen_gc():
        peak = rehearsed(model, call, args, kwargs, partial(_Eager, device_type), REAL_BYTES, beside=counted)
    if peak is None:
        return None
    held = storage_bytes([*named_tensors(model).values(), *tensors_of((args, kwargs))], device_type)
    return peak + sum(held.values())
