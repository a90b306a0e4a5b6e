"""A calibration file: what every full run so far has measured. An interrupted calibration resumes from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sicompiler.codec import Malformed, decode, read_object, refuse_other
from sicompiler.errors import BadInput, StalePlan
from sicompiler.rehash.choose import PlanInputs
from sicompiler.rehash.kinds import StepKinds
from sicompiler.rehash.lessons import CutStats, RunStats
from sicompiler.rehash.setting import Setting

BOOK_VERSION = 2


@dataclass(frozen=True)
class WatchedCut:
    """A cut whose features were watched.

    Attributes:
        positions: in the clean graph.
        names: of the nodes there.
        nbytes: of the values there.
    """

    positions: tuple[int, ...]
    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class LearnedRun:
    """One full run.

    Attributes:
        label: by which its call is known again.
        final_norm: of the latents at the end.
        lessons: by the positions of the cut; those there was no room to watch are left out.
        errors: by evaluation, the relative error of the final latents where it alone was skipped.
    """

    label: str
    final_norm: float
    lessons: Mapping[tuple[int, ...], RunStats]
    errors: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationFile:
    """What the full runs of one setting have taught.

    Attributes:
        pipeline: class of the pipeline.
        component: the denoiser, by its name in the pipeline.
        setting: of all the runs.
        importance: for each evaluation, what an error of the output does to the final latents.
        cuts: every cut that was watched.
        runs: in the order they were made.
    """

    pipeline: str
    component: str
    setting: Setting
    importance: tuple[float, ...]
    cuts: tuple[WatchedCut, ...] = ()
    runs: tuple[LearnedRun, ...] = ()

    @property
    def subject(self) -> PlanInputs:
        """What plans from these lessons are for."""
        branches = max((len(x.grams) for run in self.runs for x in run.lessons.values()), default=1)
        return PlanInputs(self.pipeline, self.component, self.setting.structure, self.setting.scheduler, branches)

    def with_run(self, run: LearnedRun, cuts: Sequence[WatchedCut]) -> CalibrationFile:
        """The file with one more run.

        Args:
            run: that was made.
            cuts: that were watched; new ones are added.

        Raises:
            BadInput: a cut of the file has features of another size there: another shape or dtype.
        """
        known = {cut.positions: cut for cut in self.cuts}
        for cut in cuts:
            before = known.setdefault(cut.positions, cut)
            if before.nbytes != cut.nbytes:
                raise BadInput(
                    f"the lessons were learned where the feature of {', '.join(before.names)} has {before.nbytes} "
                    f"bytes, but here it has {cut.nbytes}: another size or dtype; keep these lessons in another file"
                )
        return replace(self, cuts=tuple(known.values()), runs=(*self.runs, run))

    def with_error(self, label: str, step: int, error: float) -> CalibrationFile:
        """The file with what skipping one evaluation did, put down at the first run of a call, if it has one.

        Args:
            label: of the call.
            step: the evaluation that was skipped.
            error: relative, of the final latents.
        """
        runs = list(self.runs)
        for place in [i for i, run in enumerate(runs) if run.label == label][:1]:
            runs[place] = replace(runs[place], errors={**runs[place].errors, step: error})
        return replace(self, runs=tuple(runs))

    def of(self, labels: Sequence[str]) -> CalibrationFile:
        """The file with the runs of some calls only, in the order of the calls; each run stands for one of them."""
        left, found = list(self.runs), list[LearnedRun]()
        for label in labels:
            run = next((r for r in left if r.label == label), None)
            if run is not None:
                left.remove(run)
                found.append(run)
        return replace(self, runs=tuple(found))

    def lessons(self) -> list[CutStats]:
        """By cut, as plans are made from them; cuts that no run watched are left out."""
        found = []
        for cut in self.cuts:
            rows = CutStats(cut.positions, cut.names, cut.nbytes, self.setting.times, np.array(self.importance))
            for run in self.runs:
                if cut.positions in run.lessons:
                    rows.add(run.lessons[cut.positions], run.final_norm)
            if rows.lessons:
                found.append(rows)
        return found

    def to_json(self) -> str:
        """Write it as JSON; `CalibrationFile.from_json` reads it back, the same to the last bit."""
        runs = [
            {
                "label": run.label,
                "final_norm": run.final_norm,
                "lessons": [{"cut": cut, **_written(lesson)} for cut, lesson in run.lessons.items()],
                "errors": dict(run.errors),
            }
            for run in self.runs
        ]
        head = {"version": BOOK_VERSION, "pipeline": self.pipeline, "component": self.component}
        rest = {"setting": asdict(self.setting), "importance": self.importance, "cuts": [asdict(c) for c in self.cuts]}
        return json.dumps({**head, **rest, "runs": runs}, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write it to disk; whoever is interrupted while writing leaves the file as it was."""
        target = Path(path)
        fresh = target.with_name(f"{target.name}.new")
        fresh.write_text(self.to_json() + "\n", encoding="utf-8")
        os.replace(fresh, target)

    @staticmethod
    def from_json(text: str) -> CalibrationFile:
        """Read what `to_json` wrote.

        Raises:
            StalePlan: the text holds no lessons, or those of another version of the format.
        """
        try:
            data = read_object(text)
            refuse_other(data, "a file of lessons")
            if data.get("version", BOOK_VERSION) != BOOK_VERSION:
                raise StalePlan(f"the lessons have format {data['version']}, this version reads {BOOK_VERSION}")
            if isinstance(data.get("setting"), dict) and "size" not in data["setting"]:
                raise StalePlan("an earlier version wrote these lessons, of unknown guidance and size: learn them anew")
            return decode(WrittenLessons, data).read()
        except Malformed as error:
            raise StalePlan(f"this is not a file of lessons: {error}") from error

    @staticmethod
    def load(path: str | Path) -> CalibrationFile:
        """Read what `save` wrote.

        Raises:
            BadInput: the file can't be read.
            StalePlan: it holds no lessons of this version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"can't read the lessons {path}: {getattr(error, 'strerror', None) or error}") from error
        return CalibrationFile.from_json(text)


@dataclass(frozen=True)
class WrittenStats:
    """What one full run showed of one cut, as the file has it: `RunStats`, where nan is null."""

    cut: tuple[int, ...]
    grams: tuple[tuple[tuple[float, ...], ...], ...]
    gains: tuple[float | None, ...]
    full_seconds: float
    skip_seconds: float
    step_seconds: float
    kinds: tuple[StepKinds, ...]

    def read(self) -> RunStats:
        """The lesson."""
        grams = tuple(np.array(gram, dtype=np.float64) for gram in self.grams)
        gains = np.array([math.nan if gain is None else gain for gain in self.gains], dtype=np.float64)
        return RunStats(grams, gains, self.full_seconds, self.skip_seconds, self.step_seconds, self.kinds)


@dataclass(frozen=True)
class WrittenRun:
    """One full run, as the file has it: `LearnedRun`, with its lessons in a list."""

    label: str
    final_norm: float
    lessons: tuple[WrittenStats, ...]
    errors: Mapping[int, float]

    def read(self) -> LearnedRun:
        """The run."""
        lessons = {lesson.cut: lesson.read() for lesson in self.lessons}
        return LearnedRun(self.label, self.final_norm, lessons, self.errors)


@dataclass(frozen=True)
class WrittenLessons:
    """A calibration file, field by field: `CalibrationFile`, and the version of the format."""

    version: int
    pipeline: str
    component: str
    setting: Setting
    importance: tuple[float, ...]
    cuts: tuple[WatchedCut, ...]
    runs: tuple[WrittenRun, ...]

    def read(self) -> CalibrationFile:
        """What the file says."""
        runs = tuple(run.read() for run in self.runs)
        return CalibrationFile(self.pipeline, self.component, self.setting, self.importance, self.cuts, runs)


def _written(lesson: RunStats) -> dict[str, Any]:
    found = {field.name: getattr(lesson, field.name) for field in fields(lesson)}
    found["grams"] = [gram.tolist() for gram in lesson.grams]
    found["gains"] = [None if math.isnan(gain) else gain for gain in lesson.gains.tolist()]  # JSON has no nan
    return found
