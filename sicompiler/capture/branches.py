"""`torch.cond` as the branch it is: decided like any other question about a value, its body part of the graph."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

_lock = threading.RLock()


@contextlib.contextmanager
def branches_in_python() -> Iterator[None]:
    """Have `torch.cond` call one of its functions, for the time of a trace, rather than put both into the graph."""
    with _lock:
        before = torch.cond
        torch.cond = _branch
        try:
            yield
        finally:
            torch.cond = before


def _branch(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Sequence[Any] = ()) -> Any:
    return (true_fn if pred else false_fn)(*operands)
