"""Recording one full run: sketches of the features of several cuts, and what an error of each does to the output."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sicompiler.planners.min_cut import FeatureCut
from sicompiler.planners.skip_schedule import Floats
from sicompiler.rehash.kinds import StepKinds
from sicompiler.rehash.lessons import RunStats
from sicompiler.rehash.sketch import WIDTH, Snapshot, sketch


@dataclass(frozen=True)
class ProbeTurn:
    """Which evaluations of a run probe a cut, where several runs share that work.

    Attributes:
        first: of the runs, from 0: another one begins with another cut.
        runs: that share the work; each cut is probed at every so manieth evaluation of each.
    """

    first: int = 0
    runs: int = 1


class LoopRecorder:
    """What is written down of one denoising loop.

    Args:
        names: of the nodes of every cut whose features are watched.
        turn: at which evaluations each of them is probed.
    """

    def __init__(self, names: Mapping[FeatureCut, tuple[str, ...]], turn: ProbeTurn = ProbeTurn()) -> None:
        self.names, self.cuts, self._turn = dict(names), tuple(names), turn
        self._newest: dict[int, tuple[Snapshot, torch.Tensor]] = {}  # by cut: features that have just been sketched
        self._sketches: list[dict[int, dict[int, torch.Tensor]]] = [{} for _ in names]  # by branch, by step
        self._stretches: dict[int, dict[int, int]] = {}  # by branch, by step: which stretch of calls of one kind
        self._forgotten = 0  # how often
        self._moves: list[dict[int, list[float]]] = [{} for _ in names]  # by step: change of output per relative error
        self._previous: dict[int, dict[int, torch.Tensor]] = {}  # by branch, by position
        self._full_seconds: list[float] = []
        self._skip_seconds: list[list[float]] = [[] for _ in names]

    def without(self, cut: FeatureCut) -> LoopRecorder:
        """What watches all cuts but one, from the start."""
        return LoopRecorder({other: names for other, names in self.names.items() if other is not cut}, self._turn)

    def probes(self, number: int, step: int) -> bool:
        """Whether a cut is probed at an evaluation of this run."""
        return (number + step + self._turn.first) % max(min(self._turn.runs, len(self.cuts)), 1) == 0

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of all cuts together."""
        return tuple(sorted({p for cut in self.cuts for p in cut.positions}))

    @property
    def held(self) -> list[torch.Tensor]:
        """Features held until the next step."""
        return [t for kept in self._previous.values() for t in kept.values()]

    @property
    def branches(self) -> int:
        """Calls in one step, as far as they were seen."""
        return len(self._stretches)

    def recorded(self, branch: int) -> int:
        """How many evaluations of a branch are written down."""
        return len(self._sketches[0].get(branch, ())) if self.cuts else 0

    def forget(self, branch: int) -> None:
        """Let go of the features of a branch: those that come are of calls of another kind."""
        self._previous.pop(branch, None)
        self._forgotten += 1

    def previous(self, number: int, branch: int) -> Snapshot | None:
        """The feature of a cut at the evaluation before, to see what it does to the output now.

        None where there was no such call, or one of another kind.
        """
        kept = self._previous.get(branch)
        return None if kept is None else tuple(kept[p] for p in self.cuts[number].positions)

    def probed(self, number: int, branch: int, step: int, features: Snapshot, moved: float, seconds: float) -> None:
        """Put down that the output moved so far when a cut was given the feature of the evaluation before."""
        known = self._sketches[number][branch]
        now, before = self._sketched(number, features), known[max(known)]
        relative = float((now - before).norm() / now.norm().clamp_min(1e-300))
        if relative > 0:
            self._moves[number].setdefault(step, []).append(moved / relative)
        self._skip_seconds[number].append(seconds)

    def record(self, branch: int, step: int, features: dict[int, torch.Tensor], seconds: float) -> None:
        """Put down the features of an evaluation, after the probes."""
        for number, cut in enumerate(self.cuts):
            found = self._sketched(number, tuple(features[p] for p in cut.positions))
            self._sketches[number].setdefault(branch, {})[step] = found
        self._newest.clear()
        self._stretches.setdefault(branch, {})[step] = self._forgotten
        self._previous[branch] = features
        self._full_seconds.append(seconds)

    def _sketched(self, number: int, features: Snapshot) -> torch.Tensor:
        """The sketch of the features of a cut, made once an evaluation."""
        known = self._newest.get(number)
        if known is None or any(a is not b for a, b in zip(known[0], features, strict=True)):
            known = self._newest[number] = features, sketch(features)
        return known[1]

    def free(self) -> None:
        """Let go of all features."""
        self._previous.clear()

    def lessons(self, evaluations: int, step_seconds: float, kinds: tuple[StepKinds, ...] = ()) -> list[RunStats]:
        """One lesson a cut; none where nothing was recorded.

        Args:
            evaluations: how many there were.
            step_seconds: what the loop took beside the denoiser, a step.
            kinds: of the calls, at each evaluation.
        """
        found = []
        for number in range(len(self.cuts)):
            branches = self._sketches[number]
            if not branches:
                return []
            gains = np.full(evaluations, np.nan)
            for step, moves in self._moves[number].items():
                gains[step] = float(np.sqrt(np.mean(np.square(moves))))
            skip = self._skip_seconds[number]
            found.append(
                RunStats(
                    tuple(self._gram(branch, rows, evaluations) for branch, rows in branches.items()),
                    gains,
                    statistics.median(self._full_seconds),
                    statistics.median(skip) if skip else 0.0,
                    max(step_seconds, 0.0),
                    kinds,
                )
            )
        return found

    def _gram(self, branch: int, sketches: Mapping[int, torch.Tensor], evaluations: int) -> Floats:
        """[n, n]: inner products, zero where a feature is missing and between those of calls of different kinds."""
        stack, stretches = np.zeros((evaluations, WIDTH)), np.full(evaluations, -1)
        for step, row in sketches.items():
            stack[step], stretches[step] = row.numpy(), self._stretches[branch][step]
        return np.asarray(np.where(stretches[:, None] == stretches, stack @ stack.T, 0.0))
