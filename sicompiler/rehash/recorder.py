"""Recording one full run: sketches of the features of several cuts, and what an error of each does to the output."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
import torch

from sicompiler.planners.cuts import Cut
from sicompiler.rehash.lessons import Lesson
from sicompiler.rehash.sketch import Snapshot, sketch


class Recorder:
    """What is written down of one denoising loop.

    Args:
        names: of the nodes of every cut whose features are watched.
    """

    def __init__(self, names: Mapping[Cut, tuple[str, ...]]) -> None:
        self.names, self.cuts = dict(names), tuple(names)
        self._sketches: list[dict[int, list[torch.Tensor]]] = [{} for _ in names]
        self._moves: list[dict[int, list[float]]] = [{} for _ in names]  # by step: change of output per relative error
        self._previous: dict[int, dict[int, torch.Tensor]] = {}  # by branch, by position
        self._full_seconds: list[float] = []
        self._skip_seconds: list[list[float]] = [[] for _ in names]

    def without(self, cut: Cut) -> Recorder:
        """What watches all cuts but one, from the start."""
        return Recorder({other: names for other, names in self.names.items() if other is not cut})

    @property
    def positions(self) -> tuple[int, ...]:
        """Of all cuts together."""
        return tuple(sorted({p for cut in self.cuts for p in cut.positions}))

    @property
    def held(self) -> list[torch.Tensor]:
        """Features held until the next step."""
        return [t for kept in self._previous.values() for t in kept.values()]

    @property
    def branches(self) -> int:
        """Calls in one step, as far as they were seen."""
        return len(self._previous)

    def recorded(self, branch: int) -> int:
        """How many evaluations of a branch are written down."""
        return len(self._sketches[0].get(branch, ())) if self.cuts else 0

    def previous(self, number: int, branch: int) -> Snapshot | None:
        """The feature of a cut at the evaluation before, to see what it does to the output now."""
        kept = self._previous.get(branch)
        return None if kept is None else tuple(kept[p] for p in self.cuts[number].positions)

    def probed(self, number: int, branch: int, features: Snapshot, moved: float, seconds: float) -> None:
        """Put down that the output moved so far when a cut was given the feature of the evaluation before."""
        step = self.recorded(branch)
        now, before = sketch(features), self._sketches[number][branch][-1]
        relative = float((now - before).norm() / now.norm().clamp_min(1e-300))
        if relative > 0:
            self._moves[number].setdefault(step, []).append(moved / relative)
        self._skip_seconds[number].append(seconds)

    def record(self, branch: int, features: dict[int, torch.Tensor], seconds: float) -> None:
        """Put down the features of an evaluation, after the probes."""
        for number, cut in enumerate(self.cuts):
            found = sketch(tuple(features[p] for p in cut.positions))
            self._sketches[number].setdefault(branch, []).append(found)
        self._previous[branch] = features
        self._full_seconds.append(seconds)

    def free(self) -> None:
        """Let go of all features."""
        self._previous.clear()

    def lessons(self, evaluations: int, step_seconds: float) -> list[Lesson]:
        """One lesson a cut; none where the run was not recorded whole.

        Args:
            evaluations: how many there should be.
            step_seconds: what the loop took beside the denoiser, a step.
        """
        found = []
        for number in range(len(self.cuts)):
            rows = list(self._sketches[number].values())
            if not rows or any(len(row) != evaluations for row in rows):
                return []
            stacks = [torch.stack(row).numpy() for row in rows]
            gains = np.full(evaluations, np.nan)
            for step, moves in self._moves[number].items():
                gains[step] = float(np.sqrt(np.mean(np.square(moves))))
            skip = self._skip_seconds[number]
            found.append(
                Lesson(
                    tuple(stack @ stack.T for stack in stacks),
                    gains,
                    statistics.median(self._full_seconds),
                    statistics.median(skip) if skip else 0.0,
                    max(step_seconds, 0.0),
                )
            )
        return found
