"""A call of a module that is put on a tape, and stops without a word where it fails.

What can't be traced one way may be traced another: torch's own screens about it (the graph so far, on standard error;
a warning that it can't suggest anything) are of no use to anybody then, and the reason is in the error all the same.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from sicompiler.capture.program import flatten_inputs, named_tensors
from sicompiler.capture.questions import Decider

_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_SUGGESTIONS = logging.getLogger("torch.fx.experimental.symbolic_shapes")


class Stopped(Exception):
    """The model's code raised an error, the cause of this one, to which torch attaches nothing that it would print."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Leave out the graph so far, which `torch.export` prints."""
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


class _DataIsSet(TorchFunctionMode):
    """Makes `x.data = y` an operator: assigning the attribute goes past everything that a trace sees."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func == _SET_DATA:
            tensor, value = args
            return tensor.set_(value.detach())
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def taped(entry: torch.nn.Module, decider: Decider) -> Iterator[None]:
    """Have every call of a module recorded, hooks included, for the time of a trace.

    Args:
        entry: what `torch.export` traces.
        decider: keeps the tape, and answers what is asked of it.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with decider.begin(named_tensors(entry), flatten_inputs(args, kwargs)[0]), _DataIsSet():
                return type(entry)._call_impl(entry, *args, **kwargs)
        except Exception as error:
            raise Stopped(str(error)) from error

    before = {name: entry.__dict__[name] for name in ("_call_impl",) if name in entry.__dict__}
    entry.__dict__["_call_impl"] = call
    try:
        with _without_suggestions():
            yield
    finally:
        del entry.__dict__["_call_impl"]
        entry.__dict__.update(before)


@contextlib.contextmanager
def _without_suggestions() -> Iterator[None]:
    mine = threading.get_ident()

    def is_told(record: logging.LogRecord) -> bool:
        return record.thread != mine or record.levelno != logging.WARNING

    _SUGGESTIONS.addFilter(is_told)
    try:
        yield
    finally:
        _SUGGESTIONS.removeFilter(is_told)
