"""Progress bars of pipelines, by which denoising loops are seen to begin and end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


def begin_of(scheduler: Any, total: int | None) -> int:
    """How many steps a loop leaves out at the start, as it does where it starts from an image or a video."""
    told = getattr(scheduler, "begin_index", None)
    if told is not None or total is None or getattr(scheduler, "order", 1) != 1:
        return told or 0
    return max(len(scheduler.timesteps) - total, 0)


class Watched:
    """What a pipeline's progress bar gives it, with a context around the loop it is entered or iterated for."""

    def __init__(self, inner: Any, around: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._inner, self._around = inner, around
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Any:
        found = self._inner.__enter__()
        self._stack.enter_context(self._around())
        return found

    def __exit__(self, *error: Any) -> Any:
        try:
            self._stack.__exit__(*error)
        finally:
            handled = self._inner.__exit__(*error)
        return handled

    def __iter__(self) -> Iterator[Any]:
        with self._around():
            yield from self._inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
