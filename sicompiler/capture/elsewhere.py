"""Running something in the middle of a trace, but outside of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

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
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            with working_for(thread_id), torch.no_grad(), torch.cuda.stream(stream):
                results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
