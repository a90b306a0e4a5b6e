"""Stages of a command that takes a while, told as they end. Nothing heavy is imported: the first line is early."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sicompiler.cli.output import Progress


@dataclass(frozen=True)
class StageTime:
    """What a stage took.

    Attributes:
        name: of the stage.
        seconds: of the clock.
    """

    name: str
    seconds: float


class Stages:
    """One plain line a stage on stderr, with its seconds; on a terminal a bar shows what is being done, too.

    Args:
        head: said at once.
        progress: the bar.

    Attributes:
        done: the stages that have ended, in order.
    """

    def __init__(self, head: str, progress: Progress) -> None:
        self.done: list[StageTime] = []
        self.progress, self._stream = progress, sys.stderr  # the real one, also where `quiet` replaces it
        self.say(head)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context for a stage; its line comes at the end of it."""
        self.progress(name, 0, 1)
        began = time.perf_counter()
        yield
        self.done.append(StageTime(name, time.perf_counter() - began))
        self.say(f"{name}: {self.done[-1].seconds:.1f} s")

    def say(self, line: str) -> None:
        """One line."""
        print(f"sicompiler: {line}", file=self._stream, flush=True)
