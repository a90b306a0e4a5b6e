"""Calls in full, with which runs of plans are compared. Each is made once: a run that was learned from is one, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.runs import Call, EachStep, Run, RunEnded, run_call
from sicompiler.rehash.loop import DenoisingLoop
from sicompiler.rehash.sketch import sketch


class References:
    """The full runs of some calls, made when they are asked for.

    Args:
        state: of the pipeline.
        calls: keyword arguments.

    Attributes:
        calls: the same.
        timed: the newest run in which nothing but the denoising was done; None where all were learned from.
    """

    def __init__(self, state: CompiledPipeline, calls: Sequence[Call]) -> None:
        self.calls, self._state = list(calls), state
        self._runs: dict[int, tuple[Run, list[torch.Tensor]]] = {}
        self.timed: Run | None = None

    def has(self, number: int) -> bool:
        """Whether a call was made."""
        return number in self._runs

    def make(self, number: int, mode: Mode) -> Run:
        """Make a call in full.

        Args:
            number: of the call.
            mode: exact, or learned from.
        """
        assert self._state.rehash is not None
        path: list[torch.Tensor] = []
        with self._state.rehash.running(mode):
            run = run_call(self._state, self.calls[number], lambda loop: path.append(_sketched(loop)))
        self._runs[number] = run, path
        if mode is Mode.EXACT:
            self.timed = run
        return run

    def of(self, number: int) -> Run:
        """The full run of a call, made now if it was not."""
        return self._runs[number][0] if self.has(number) else self.make(number, Mode.EXACT)

    def ending_beyond(self, number: int, limit: float) -> EachStep:
        """Ends a run of a call where its latents are further from those of the full run than they may be.

        Args:
            number: of the call, which was made in full.
            limit: relative error, as sketches tell it.
        """
        path = self._runs[number][1]

        def each_step(loop: DenoisingLoop) -> None:
            if loop.step <= len(path):
                wanted = path[loop.step - 1]
                if float((_sketched(loop) - wanted).norm()) > limit * float(wanted.norm()):
                    raise RunEnded

        return each_step


def _sketched(loop: DenoisingLoop) -> torch.Tensor:
    """Small enough to be kept for every step."""
    assert loop.final is not None
    return sketch((loop.final.contiguous(),))
