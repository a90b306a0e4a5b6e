"""Calls of torch's functions whose memory is known from an earlier one like it.

A model calls the same few functions with tensors of the same layouts over and over. What such a call allocates, for how
long, and what it gives follow from its arguments and from torch's own state alone; so the first call of a kind runs
operator by operator, and the next one takes from it how much is held meanwhile, and gives tensors of the same layouts.
How long those live is up to the model's code, as ever.

Whatever else may have a say (a function of others, an autocast, gradients, real tensors, numbers that a fake tensor
knows, operands whose layout is changed in place) is run every time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import _get_current_function_mode_stack

from sicompiler.capture.functions import Unlike, is_torchs
from sicompiler.capture.like_calls import Results, is_plain_state, layouts_of, results_of, settings


@dataclass(frozen=True)
class Footprint:
    """What a call takes and gives.

    Attributes:
        peak_bytes: the most it holds beyond what was there before.
        results: the tensors it gives.
    """

    peak_bytes: int
    results: Results


@dataclass(frozen=True)
class _Call:
    """A call that may be told from an earlier one.

    Attributes:
        key: equal for no other kind of call.
        operands: its tensors, in order; one that is given twice is there twice.
    """

    key: Any
    operands: tuple[FakeTensor, ...]


class Footprints:
    """What calls of torch's functions take, by what tells them apart; made where no mode of the model's own is on.

    Args:
        mode: of the fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._modes, self._operator_modes = _get_current_function_mode_stack(), torch._C._len_torch_dispatch_stack()
        self._known: dict[Any, Footprint | None] = {}
        self._others: set[Any] = set()  # functions that give no tensors, or are not torch's

    def call(self, func: Any, args: Any, kwargs: Any) -> _Call | None:
        """A call that what is known may tell of; None for one that has to run."""
        if func in self._others or not self._is_plain_state():
            return None
        operands: list[FakeTensor] = []
        with torch._C.DisableTorchFunction():
            try:
                layouts = layouts_of((args, kwargs), self._mode, operands)
            except Unlike:
                return None
        if not operands:
            return None
        return _Call((func, *settings(), layouts), tuple(operands))

    def _is_plain_state(self) -> bool:
        """Whether nothing but its arguments has a say in what a function does."""
        return (
            is_plain_state()
            and torch._C._len_torch_dispatch_stack() == self._operator_modes
            and _get_current_function_mode_stack() == self._modes
        )

    def has_met(self, call: _Call) -> bool:
        """Whether there was a call of the kind before."""
        return call.key in self._known

    def known(self, call: _Call) -> Footprint | None:
        """What an earlier call of the kind took; None where there was none, or it can't be said."""
        return self._known.get(call.key)

    def learn(self, call: _Call, args: Any, kwargs: Any, result: Any, peak_bytes: int, before: Collection[int]) -> None:
        """Keep what a call took.

        Args:
            call: which has run.
            args: its positional arguments.
            kwargs: its keyword arguments.
            result: what it gave.
            peak_bytes: the most it held beyond what was there before.
            before: the storages that were there.
        """
        self._known[call.key] = None
        func, *_, layouts = call.key
        with torch._C.DisableTorchFunction():
            if not _is_pure(func) or not _has_tensors(result):
                self._others.add(func)
                return
            with contextlib.suppress(Unlike):
                results = results_of(result, call.operands, before)
                if results is not None and layouts_of((args, kwargs), self._mode, []) == layouts:
                    self._known[call.key] = Footprint(peak_bytes, results)


def _is_pure(func: Any) -> bool:
    """Whether a function is torch's own."""
    if isinstance(func, OpOverload | OpOverloadPacket):
        overload = func if isinstance(func, OpOverload) else getattr(func, func.overloads()[0])
        return bool(overload.namespace == "aten")
    return is_torchs(func)


def _has_tensors(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return True
    return type(result) in (tuple, list) and any(isinstance(leaf, torch.Tensor) for leaf in result)
