"""A call of a module that is put on a tape, and stops without a word where it fails.

What can't be traced one way may be traced another: torch's own screens about it (the graph so far, on standard error;
a warning that it can't suggest anything) are of no use to anybody then, and the reason is in the error all the same.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture.live_tensors import named_tensors
from sicompiler.capture.program import flatten_inputs
from sicompiler.capture.questions import Decider
from sicompiler.capture.rehearsal import CallRecorder, Score
from sicompiler.capture.tape import tensors_in

_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_OF_NUMBERS = frozenset({torch.tensor, torch.as_tensor})
_SUGGESTIONS = logging.getLogger("torch.fx.experimental.symbolic_shapes")


class ModelRaised(Exception):
    """The model's code raised an error, the cause of this one, to which torch attaches nothing that it would print."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Leave out the graph so far, which `torch.export` prints."""
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


def _dispatched(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a function of torch, with operators in the place of what goes past everything that a trace sees.

    `x.data = y` assigns an attribute; `torch.tensor([a, b])` of tensors reads their numbers out of their memory.
    """
    if func == _SET_DATA:
        tensor, value = args
        return tensor.set_(value.detach())
    if func in _OF_NUMBERS and args and isinstance(args[0], list | tuple) and _are_entries(tensors_in(args[0])):
        return _stacked(*args, **kwargs)
    return func(*args, **kwargs)


def _are_entries(tensors: Sequence[torch.Tensor]) -> bool:
    return bool(tensors) and all(tensor.dim() == 0 for tensor in tensors)


def _stacked(
    data: Sequence[Any],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> torch.Tensor:
    """What `torch.tensor` makes of nested lists with single entries; a trace neither records gradients nor pins."""
    leaves = [leaf if isinstance(leaf, torch.Tensor) else torch.tensor(leaf) for leaf in pytree.tree_leaves(data)]
    kind = dtype or functools.reduce(torch.promote_types, (leaf.dtype for leaf in leaves))

    def stack(part: Any) -> torch.Tensor:
        if isinstance(part, list | tuple):
            return torch.stack([stack(each) for each in part])
        return torch.as_tensor(part, dtype=kind, device=device or torch.get_default_device())

    return stack(data)


@contextlib.contextmanager
def taped(entry: torch.nn.Module, decider: Decider) -> Iterator[list[Score]]:
    """Have every call of a module recorded, hooks included, for the time of a trace.

    Args:
        entry: what `torch.export` traces.
        decider: keeps the tape, and answers what is asked of it.

    Yields:
        What each call did.
    """
    scores: list[Score] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        weights = named_tensors(entry)
        score = Score(weights, (args, kwargs))
        try:
            with decider.begin(weights, flatten_inputs(args, kwargs)[0]), CallRecorder(score, _dispatched):
                score.result = type(entry)._call_impl(entry, *args, **kwargs)
        except Exception as error:
            raise ModelRaised(str(error)) from error
        scores.append(score)
        return score.result

    before = {name: entry.__dict__[name] for name in ("_call_impl",) if name in entry.__dict__}
    entry.__dict__["_call_impl"] = call
    try:
        with _without_suggestions():
            yield scores
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
