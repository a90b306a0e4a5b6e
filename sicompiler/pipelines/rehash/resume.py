"""Calibrations that go on where they were interrupted: lessons are written down after every run and read again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sicompiler.errors import BadInput
from sicompiler.pipelines.rehash.hooks import PipelineRehash
from sicompiler.pipelines.rehash.labels import label_of
from sicompiler.rehash.book import CalibrationFile, LearnedRun, WatchedCut
from sicompiler.rehash.importance import scheduler_line


class CalibrationLog:
    """What is known of the calls of a calibration; kept in a file if the request names one.

    Args:
        rehash: of the pipeline; takes over what the file knows of these calls.
        pipe: the pipeline.
        calls: keyword arguments of the calls to learn from.

    Attributes:
        waiting: numbers of the calls that are still to be run, in order.
        order: numbers of all calls in the order in which their lessons are kept.

    Raises:
        BadInput: the file can't be read or written, or is of another pipeline or scheduler.
        StalePlan: it holds no lessons of this version.
    """

    def __init__(self, rehash: PipelineRehash, pipe: Any, calls: Sequence[Mapping[str, Any]]) -> None:
        self._rehash = rehash
        self._labels = [label_of(call) for call in calls]
        self.path = None if rehash.request.lessons is None else Path(rehash.request.lessons)
        self._book: CalibrationFile | None = None
        self._errors: dict[int, dict[int, float]] = {}  # by call, by evaluation that alone was skipped
        self._counts: dict[tuple[int, ...], int] = {}  # of lessons, by cut: what is more has just been learned
        self.waiting = self.order = list(range(len(calls)))
        if self.path is None:
            return
        if not self.path.exists():
            if self.path.is_dir() or not self.path.absolute().parent.is_dir():
                raise BadInput(f"can't keep lessons in {self.path}: there is no such folder")
            return
        self._book = book = CalibrationFile.load(self.path)
        for what, known, here in (
            ("pipeline", book.pipeline, rehash.state.name),
            ("component", book.component, rehash.component),
            ("scheduler", book.setting.scheduler, scheduler_line(pipe.scheduler)),
        ):
            if known != here:
                raise BadInput(
                    f"the lessons in {self.path} are of {what} {known}, but this is {here}; keep them in another file"
                )
        rehash.expected = book.setting
        self._take_over(book.of(self._labels))

    def _take_over(self, book: CalibrationFile) -> None:
        """Let what was learned of these calls stand for running them."""
        left = [run.label for run in book.runs]
        self.waiting = []
        for number, label in enumerate(self._labels):
            if label in left:
                left.remove(label)
                self._errors[number] = dict(next(run.errors for run in book.runs if run.label == label))
            else:
                self.waiting.append(number)
        self.order = [*(n for n in self.order if n not in self.waiting), *self.waiting]
        if book.runs:
            self._rehash.lessons[book.setting] = rows = book.lessons()
            self._counts = {row.cut: len(row.lessons) for row in rows}

    def errors_of(self, number: int) -> Mapping[int, float]:
        """By evaluation, the relative error of the final latents of a call where it alone was skipped."""
        return self._errors.get(number, {})

    def add_error(self, number: int, step: int, error: float) -> None:
        """Write down what skipping one evaluation of a call did.

        Args:
            number: of the call.
            step: the evaluation.
            error: relative, of the final latents.
        """
        self._errors.setdefault(number, {})[step] = error
        if self.path is not None and self._book is not None and math.isfinite(error):
            self._book = self._book.with_error(self._labels[number], step, error)
            self._book.save(self.path)

    def add(self, number: int, final: torch.Tensor) -> None:
        """Write down a call that has just been run.

        Args:
            number: of the call.
            final: the latents at the end of it.

        Raises:
            BadInput: it was of another setting or size than those before, or other cuts were watched.
        """
        rehash, loop = self._rehash, self._rehash.last
        if self.path is None or loop is None or loop.setting is None or loop.recorder is None:
            return
        rows, seen = rehash.lessons.get(loop.setting, []), {cut.positions: cut.nbytes for cut in loop.recorder.cuts}
        if rows and not any(row.cut in seen for row in rows):
            raise BadInput(
                f"the lessons in {self.path} are of other cuts than could be watched here: they were learned on "
                "another device, or within another budget; keep them in another file"
            )
        grown = [row for row in rows if len(row.lessons) > self._counts.get(row.cut, 0)]
        if not grown:
            return  # the loop did not run all of its steps, which has been said
        book = self._book or CalibrationFile(
            rehash.state.name, rehash.component, loop.setting, tuple(map(float, grown[0].importance))
        )
        book.setting.check(loop.setting)
        run = LearnedRun(self._labels[number], float(final.norm()), {row.cut: row.lessons[-1] for row in grown})
        self._book = book.with_run(run, [WatchedCut(row.cut, row.names, seen[row.cut]) for row in grown])
        self._counts = {row.cut: len(row.lessons) for row in rows}
        self._book.save(self.path)
        rehash.expected = self._book.setting
