"""Rehearsals: a call of a live model on fake tensors, to see how much memory it takes, and real calls with a limit.

Fake tensors have shapes and no data. The weights are fake, and so is all that is computed with them; the inputs, and
the little that is made of them alone, are real, so that Python code that looks at a mask decides as it will. Where it
asks for a value that isn't there, a rehearsal answers with a guess, and is repeated with others: 0, 1, and the longest
size among the inputs. Where the number of results depends on values (`nonzero`) there are as many as there can be.

So what comes out is an estimate, and buffers inside kernels are not in it. A real call is therefore watched when it is
the first of its shape: it is stopped before the operator that would take it past its limit.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import stateless
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from sicompiler.capture import named_tensors
from sicompiler.capture.entry import FORWARD
from sicompiler.capture.quantised import can_be_faked, storage_bytes, stored
from sicompiler.capture.results import tensors_of
from sicompiler.guards import keep_state

log = logging.getLogger("sicompiler")
aten = torch.ops.aten

REAL_BYTES = 2**16  # ids and masks of a prompt, not their products


class RehearsalStopped(Exception):
    """A call was stopped before it passed its limit.

    Attributes:
        operator: what would have passed it.
        needed_bytes: how much would have been held then.
    """

    def __init__(self, operator: str, needed_bytes: int) -> None:
        super().__init__(operator, needed_bytes)
        self.operator, self.needed_bytes = operator, needed_bytes


class _Level(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, for as long as they live.

    Args:
        known: storages that were there before.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.level = self.peak = 0
        self._known: set[int] = known
        self._living: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(is_traceable_wrapper_subclass(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            return NotImplemented  # what the class of the tensor does is seen operator by operator
        result = self.run(func, args, kwargs)
        self.note(func, args, kwargs, result)
        return result

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives."""
        return func(*args, **kwargs)

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count what an operator made."""
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                for tensor in stored(leaf):
                    self._note(tensor)
        self.peak = max(self.peak, self.level)

    def storage_bytes(self, storage: torch.UntypedStorage) -> int:
        """What a storage counts for."""
        return int(storage.nbytes())  # symbolic under a mode with sizes of its own

    def there(self) -> set[int]:
        """The storages that are counted, or were there before."""
        return {*self._known, *self._living}

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, self.storage_bytes(storage)
        if key in self._known or key in self._living:
            return

        def released(_: object) -> None:
            self.level -= nbytes
            self._living.pop(key, None)

        self._living[key] = weakref.ref(storage, released)
        self.level += nbytes


class Rehearsal(_Level):
    """Runs operators on fake tensors, and answers what those can't know.

    Args:
        guess: the value of everything that is asked for and isn't there.
        real_bytes: how much may be made of real tensors at any time.
        known: storages that were there before.
        mode: of the fake tensors.
    """

    def __init__(self, guess: int, real_bytes: int, known: set[int], mode: FakeTensorMode) -> None:
        super().__init__(known)
        self.fake_mode, self._guess, self._real_bytes, self.asked = mode, guess, real_bytes, False

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives: real where it is little and made of what is real."""
        fake = any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves((args, kwargs)))
        if not fake and self.level + _result_bytes(self.fake_mode, func, args, kwargs) <= self._real_bytes:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: _faked(self.fake_mode, t), (args, kwargs))
        with self.fake_mode:
            return self._answer(func, args, kwargs)

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result on fake tensors, guessed where it depends on values."""
        if func is aten.equal.default:
            self.asked = True
            return bool(self._guess)
        if func is aten._local_scalar_dense.default:
            self.asked = True
            dtype = args[0].dtype
            kind = bool if dtype is torch.bool else float if dtype.is_floating_point else int
            return kind(self._guess)
        if func is aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if func is aten.index.Tensor:
            return func(args[0], [index for given in args[1] for index in _positions(given)])
        if func is aten.masked_select.default:
            return args[0].new_empty((max(args[0].numel(), args[1].numel()),))
        return func(*args, **kwargs)


def _faked(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)


def _result_bytes(mode: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> int:
    """Bytes of the results of an operator beyond its operands; 0 where its shapes don't tell."""
    try:
        inputs = pytree.tree_map_only(torch.Tensor, lambda t: _faked(mode, t), (args, kwargs))
        with mode:
            result = func(*inputs[0], **inputs[1])
        before = storage_bytes(tensors_of(inputs))
        return sum(n for key, n in storage_bytes(tensors_of(result)).items() if key not in before)
    except Exception:  # an operator without shapes of its own is counted once it has run
        return 0


def _positions(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """An index as positions: a mask selects as many entries as it has, one number for each of its dims."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [index.new_empty((index.numel(),), dtype=torch.int64)] * index.dim()


class Limit(_Level):
    """A context in which a real call is stopped before it holds more than it may.

    Args:
        limit_bytes: beyond what is there when the context is entered.
        known: storages that are there.
    """

    def __init__(self, limit_bytes: int, known: set[int]) -> None:
        super().__init__(known)
        self._limit_bytes = limit_bytes
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives, unless it is too much."""
        needed = self.level + _result_bytes(self._mode, func, args, kwargs)
        if needed > self._limit_bytes:
            raise RehearsalStopped(str(func), needed)
        return func(*args, **kwargs)


def rehearse(
    model: torch.nn.Module,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    room_bytes: int = REAL_BYTES,
) -> int | None:
    """The most bytes that a call holds beside weights and inputs, as far as shapes tell.

    Args:
        model: the live model; plain attributes that the call changes are put back.
        call: the model's own method.
        args: of the call.
        kwargs: of the call.
        room_bytes: what may be made of real tensors meanwhile, if there is as much as that.

    Returns:
        None where it can't be run on fake tensors: a kernel says nothing about the shapes of its results, say.
    """
    return rehearsed(model, call, args, kwargs, Rehearsal, max(min(room_bytes, REAL_BYTES), 0))


def rehearsed(
    model: torch.nn.Module,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    make: Callable[[int, int, set[int], FakeTensorMode], Rehearsal],
    real_bytes: int,
    beside: Callable[[Rehearsal], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> int | None:
    """The peak of a rehearsal that counts in a way of its own.

    Args:
        model: the live model; plain attributes that the call changes are put back.
        call: the model's own method.
        args: of the call.
        kwargs: of the call.
        make: the rehearsal, from a guess, bytes of real tensors, storages that were there before and a mode.
        real_bytes: what may be made of real tensors at any time.
        beside: a context around the call, for a rehearsal.

    Returns:
        None where it can't be run on fake tensors.
    """
    if not can_be_faked(model):
        return None
    longest = max((size for t in tensors_of((args, kwargs)) for size in t.shape), default=1)
    peaks: list[int] = []
    for guess in dict.fromkeys((0, 1, longest)):
        try:
            rehearsal = _rehearse(model, call, args, kwargs, partial(make, guess, real_bytes), beside)
        except Exception as error:  # whatever a model does with tensors that have no data
            log.debug("%s can't be rehearsed: %s: %s", type(model).__name__, type(error).__name__, error)
            continue
        peaks.append(rehearsal.peak)
        if not rehearsal.asked:
            break
    return max(peaks, default=None)


def _rehearse(
    model: torch.nn.Module,
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    make: Callable[[set[int], FakeTensorMode], Rehearsal],
    beside: Callable[[Rehearsal], AbstractContextManager[Any]],
) -> Rehearsal:
    tensors = named_tensors(model)
    given = next((t.fake_mode for t in tensors.values() if isinstance(t, FakeTensor)), None)
    mode = given or FakeTensorMode(allow_non_fake_inputs=True)
    weights = {name: _faked(mode, tensor) for name, tensor in tensors.items()}
    rehearsal = make({*storage_bytes([*weights.values(), *tensors_of((args, kwargs))])}, mode)
    undo = keep_state(model, FORWARD)
    try:
        untied = stateless._reparametrize_module(model, weights, tie_weights=True)
        with torch.no_grad(), untied, rehearsal, beside(rehearsal):
            call(*args, **kwargs)
    finally:
        undo.back()
    return rehearsal
