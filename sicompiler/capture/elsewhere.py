"""Running something in the middle of a trace, but outside of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from sicompiler.device import stream_in_use
from sicompiler.turns import this_thread, working_for

T = TypeVar("T")


def elsewhere(work: Callable[[], T]) -> T:
    """Run something in a thread of its own, where none of the modes and autocasts of a trace is on.

    Args:
        work: takes nothing; its kernels are queued where the caller's would be.

    Raises:
        BaseException: what it raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    thread_id = this_thread()
    stream = stream_in_use()

    def run() -> None:
        try:
            with working_for(thread_id), torch.no_grad(), stream or contextlib.nullcontext():
                results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
