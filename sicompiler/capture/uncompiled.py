"""Where a model computes something else while it is traced than in a plain call: it is kept from that, or refused.

A model that asks whether it is compiled is told that it is not; whether it is exported, that it is. Installed packages
go on hearing that they are compiled: they ask so as not to keep tensors of a trace in caches of theirs.

`nn.TransformerEncoder` goes by nested tensors where it is told of padding, and gives zeros there; in a trace it can't,
and leaves in the padding what comes out.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch

from sicompiler.errors import CaptureError
from sicompiler.guards.code import INSTALLED

_ON_BEHALF = frozenset({"torch.compiler", "torch._utils", "torch._dynamo.external_utils"})  # ask for their callers
_BATCHED = 3  # dims


@contextlib.contextmanager
def as_in_a_plain_call() -> Iterator[None]:
    """Have models do in a trace, in this thread, what they do without."""
    before = [getattr(owner, name) for owner, name, _ in _ROWS]
    for (owner, name, make), own in zip(_ROWS, before, strict=True):
        setattr(owner, name, make(own, threading.get_ident()))
    try:
        yield
    finally:
        for (owner, name, _), own in zip(_ROWS, before, strict=True):
            setattr(owner, name, own)


def _answering(told: Callable[[], bool], thread: int) -> Callable[[], bool]:
    def answer() -> bool:
        return told() and not (threading.get_ident() == thread and _is_a_models(sys._getframe(1)))

    return answer


def _is_a_models(frame: FrameType | None) -> bool:
    """Whether the code that asks is that of a model."""
    while frame is not None and frame.f_globals.get("__name__") in _ON_BEHALF:
        frame = frame.f_back
    if frame is None:
        return False
    return not any(folder in frame.f_code.co_filename for folder in INSTALLED)


def _without_nested(forward: Callable[..., Any], thread: int) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checked(
        encoder: torch.nn.TransformerEncoder,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Any:
        if (
            src_key_padding_mask is not None
            and threading.get_ident() == thread
            and torch.backends.mha.get_fastpath_enabled()
            and getattr(encoder, "use_nested_tensor", False)
            and not encoder.layers[0].training
            and src.dim() == _BATCHED
        ):
            raise CaptureError(
                "nn.TransformerEncoder goes by nested tensors where it is told of padding, which no graph has, and "
                "gives zeros there\n  make it with enable_nested_tensor=False, or call "
                "torch.backends.mha.set_fastpath_enabled(False): then it leaves the padding alone, compiled or not"
            )
        return forward(encoder, src, mask, src_key_padding_mask, is_causal)

    return checked


_ROWS: tuple[tuple[Any, str, Callable[[Callable[..., Any], int], Callable[..., Any]]], ...] = (
    (torch.compiler, "is_compiling", _answering),
    (torch.nn.TransformerEncoder, "forward", _without_nested),
)
