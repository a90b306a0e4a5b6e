"""Operators of a trace that are like an earlier one: on the tape as they are called, and not run.

A fake operator takes torch 0.3 ms below the point where it is recorded: through autograd, the tape and the fake mode,
taken apart into the operators that a kernel runs for. What it gives then follows from its operands' layouts.

Run every time is what more than these has a say in: an operator that writes, or whose parts do; one that reads values;
and whatever is called under a mode of the model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from sicompiler.capture.functions import Unlike
from sicompiler.capture.like_calls import Results, is_plain_state, layouts_of, results_of, settings
from sicompiler.capture.symbols import depends_on_data
from sicompiler.capture.tape import Tape, TapedOperator


class LikeOperators:
    """What operators give, of one trace after the other: each has a fake mode of its own."""

    def __init__(self) -> None:
        self._known: dict[Any, Results | None] = {}
        self._mode: FakeTensorMode | None = None

    def run(self, func: OpOverload, args: Any, kwargs: Any) -> tuple[Any, Results | None]:
        """What an operator gives; with what told it, where the operator was not run.

        Args:
            func: gives no symbols.
            args: with fake tensors of known sizes.
            kwargs: by name.
        """
        modes = _get_current_dispatch_mode_stack()
        if len(modes) != 2 or func._schema.is_mutable or not is_plain_state():
            return func(*args, **kwargs), None
        mode, tape = modes
        if not isinstance(mode, FakeTensorMode) or not isinstance(tape, Tape):
            return func(*args, **kwargs), None
        if mode is not self._mode:
            self._known, self._mode = {}, mode
        operands: list[FakeTensor] = []
        with torch._C.DisableTorchFunction():
            try:
                key = (func, settings(), layouts_of((args, kwargs), mode, operands))
            except Unlike:
                operands.clear()
        if not operands:
            return func(*args, **kwargs), None
        known = self._known.get(key)
        if known is not None:
            result = known.again(operands)
            if not known.is_operands:
                tape.record(func, args, kwargs, result)
            return result, known
        before, numbers = len(tape.entries), tape.num_without_tensors
        result = func(*args, **kwargs)
        if key not in self._known:
            parts = tape.entries[before:] if tape.num_without_tensors == numbers else None
            with torch._C.DisableTorchFunction():
                pure = parts is not None and all(map(_is_pure, parts))
                self._known[key] = results_of(result, operands) if pure else None
        return result, None


def _is_pure(part: TapedOperator) -> bool:
    """Whether a part of an operator has no other effect than its results, whose layouts no value decides."""
    return isinstance(part.target, OpOverload) and not part.writes and not depends_on_data(part.target)
