"""A rehash plan: which evaluations run in full, how each other one predicts its feature. A value: JSON out and in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from sicompiler.codec import Malformed, decode, read_object, refuse_other
from sicompiler.errors import BadInput, StalePlan
from sicompiler.planners.skip_schedule import Prediction, Schedule
from sicompiler.rehash.kinds import CallKind, StepKinds
from sicompiler.rehash.setting import Setting

REHASH_VERSION = 4


@dataclass(frozen=True)
class Other:
    """Another way to be as fast as a plan, on the same held-out runs.

    Attributes:
        method: "uniform" (reuse at even distances, at the same cut and with as many evaluations in full), or "fewer
            steps" (as many as take the time of the plan).
        full: evaluations in full.
        rel_error: the worst relative error of the final latents against the full run.
        psnr: the worst of the frames, in dB.
        frames: the worst relative error of the frames.
        median_frames: the median of it.
        runs: how many runs these are of.
    """

    method: str
    full: int
    rel_error: float
    psnr: float
    frames: float = 0.0
    median_frames: float = 0.0
    runs: int = 0


@dataclass(frozen=True)
class Verified:
    """What held-out runs showed.

    Attributes:
        runs: how many.
        rel_error: the worst relative error of the final latents.
        psnr: the worst of the frames, in dB.
        tries: plans that were tried on these runs, this one the last.
        others: what the plan competes with; they took no part in the choice.
    """

    runs: int
    rel_error: float
    psnr: float
    tries: int = 1
    others: tuple[Other, ...] = ()

    @property
    def confidence(self) -> float:
        """How sure it is that another run is no worse than the worst seen: m / (m + 1) for the first plan tried.

        Of m + 1 exchangeable runs the last is the worst with probability 1 / (m + 1). So a calibration ends within k
        tries, with a plan that the next run does worse by, with probability k / (m + 1) at most. For the error and for
        the PSNR, each on its own.
        """
        return max(1 - self.tries / (self.runs + 1), 0.0)

    @property
    def nearer(self) -> tuple[str, ...]:
        """What ends nearer to the full run than the plan, in words; nothing where the plan is best."""
        return tuple(
            f"{other.method} with {other.full} evaluations ends nearer to the full run than the plan, relative error "
            f"{other.rel_error:.3g} against {self.rel_error:.3g} on {self.runs} held-out runs"
            for other in self.others
            if other.rel_error < self.rel_error
        )


@dataclass(frozen=True)
class FrontierPoint:
    """One of the plans that could be had.

    Attributes:
        full: evaluations in full.
        speedup: expected, of the loop.
        predicted_error: of the final latents.
        cut_names: where it cuts.
        snapshots_bytes: the most features it holds.
    """

    full: int
    speedup: float
    predicted_error: float
    cut_names: tuple[str, ...]
    snapshots_bytes: int


@dataclass(frozen=True)
class Check:
    """How a full evaluation after skipped ones measures what was predicted: the guard.

    Attributes:
        prediction: of its feature, as if it were skipped.
        bound: the greatest relative error of that at which skipping goes on.
    """

    prediction: Prediction
    bound: float


@dataclass(frozen=True)
class RehashPlan:
    """How the denoising loop of one pipeline skips.

    Attributes:
        pipeline: class of the pipeline.
        component: the denoiser, by its name in the pipeline.
        structure: of the denoiser's graph: operators and their order, without sizes.
        scheduler: its class, and the part of its configuration that matters, as one line.
        cut: positions of the values that are kept.
        cut_names: of the same nodes, for people.
        snapshot_bytes: of these values together, at the shape that was learned from.
        branches: calls of the denoiser in one step: 2 where guidance calls it for each branch.
        steps: for each evaluation, how it predicts; None where it runs in full.
        checks: for each evaluation, how the guard measures there; None where it does not.
        strategy: how the steps were chosen: "planned", "uniform", "similarity", ...
        predicted_error: relative error of the final latents: the median over `checked` calls, each run with what the
            other calls have taught; where none was, an estimate from full runs alone, which is no promise.
        whole_seconds: of one evaluation where nothing is skipped or kept.
        full_seconds: of one in full, with the features that are held beside it.
        skip_seconds: of one that is skipped. All three as measured while plans were tried, or else while learning.
        step_seconds: of a step of the loop, beside the denoiser.
        outside_seconds: of a call, before and after its loop.
        checked: calls on which errors were measured before the plan was trusted.
        frames_error: of the frames, as `predicted_error` is of the latents; None where nothing was checked.
        verified: by held-out runs; None where nothing was.
        points: what else could be had, fastest first.
        kinds: for each evaluation, the calls of that step in the runs that were learned from (one row for each way they
            were seen): guidance may end there, say. Empty where all calls of a branch were alike.
        guidance, size: of those runs (`Setting`). What was measured holds for no other; empty where nothing was.
    """

    pipeline: str
    component: str
    structure: str
    scheduler: str
    cut: tuple[int, ...]
    cut_names: tuple[str, ...]
    snapshot_bytes: int
    branches: int
    steps: Schedule
    checks: tuple[Check | None, ...]
    strategy: str
    predicted_error: float
    whole_seconds: float
    full_seconds: float
    skip_seconds: float
    step_seconds: float = 0.0
    outside_seconds: float = 0.0
    checked: int = 0
    frames_error: float | None = None
    verified: Verified | None = None
    points: tuple[FrontierPoint, ...] = ()
    kinds: tuple[tuple[StepKinds, ...], ...] = ()
    guidance: str = ""
    size: tuple[int, ...] = ()
    version: int = REHASH_VERSION

    def frontier(self) -> tuple[FrontierPoint, ...]:
        """What could be had instead: the smallest predicted error by speed-up, fastest first."""
        return self.points

    @property
    def snapshots_bytes(self) -> int:
        """The most bytes of features held at a time, those a full evaluation makes included."""
        return max(self.full_snapshots + 1, self.skip_snapshots + 1) * self.snapshot_bytes

    @property
    def evaluations(self) -> int:
        """Steps of the scheduler in one run."""
        return len(self.steps)

    @property
    def full(self) -> tuple[int, ...]:
        """The evaluations that run in full."""
        return tuple(i for i, prediction in enumerate(self.steps) if prediction is None)

    @property
    def order(self) -> int:
        """The order of the predictor, at most: one less than the features it combines."""
        return max((len(p.sources) - 1 for p in self.steps if p is not None), default=0)

    @property
    def speedup(self) -> float:
        """Expected ratio of the seconds of a whole call, all evaluations in full, to those by this plan."""
        return self._ratio(self.outside_seconds)

    @property
    def loop_speedup(self) -> float:
        """How many times as fast the denoising loop alone is, which fewer steps would shorten as much."""
        return self._ratio(0.0)

    def _ratio(self, outside: float) -> float:
        full, skipped = self.branches * len(self.full), self.branches * (self.evaluations - len(self.full))
        beside = self.evaluations * self.step_seconds + outside
        planned = full * self.full_seconds + skipped * self.skip_seconds + beside
        return ((full + skipped) * self.whole_seconds + beside) / planned if planned else 1.0

    @property
    def certified(self) -> bool:
        """Whether held-out runs stand behind it."""
        return self.verified is not None

    @cached_property
    def last_use(self) -> Mapping[int, int]:
        """The last evaluation that reads the feature of each full one; those never read are left out."""
        found: dict[int, int] = {}
        for i, (prediction, check) in enumerate(zip(self.steps, self.checks, strict=True)):
            read = prediction or (check.prediction if check else None)
            found |= dict.fromkeys(read.sources if read else (), i)
        return found

    def held_before(self, step: int) -> tuple[int, ...]:
        """The full evaluations whose features are held when an evaluation begins."""
        return tuple(s for s, last in self.last_use.items() if s < step <= last)

    @property
    def full_snapshots(self) -> int:
        """The most features held beside those a full evaluation makes, all branches together."""
        held = (len(self.held_before(i)) for i in self.full)
        return self.branches * max(held, default=0) + self.branches - 1

    @property
    def skip_snapshots(self) -> int:
        """The most features held beside the one given to a skipped evaluation, all branches together."""
        skipped = [i for i, p in enumerate(self.steps) if p is not None]
        return max((self.branches * len(self.held_before(i)) - self._is_reuse(i) for i in skipped), default=0)

    def _is_reuse(self, step: int) -> bool:
        prediction = self.steps[step]
        return prediction is not None and prediction.weights == (1.0,)

    def unmeasured(self, setting: Setting) -> str:
        """Why what was measured does not hold in a loop; empty where it does, or where nothing was measured.

        Args:
            setting: of the loop, for whose scheduler and steps the plan is.
        """
        here = replace(setting, guidance=self.guidance or setting.guidance, size=self.size or setting.size)
        differs = here.difference(setting)
        return f"the plan was checked in a loop {differs}; calibrate on such calls, or accept_worse=True" * bool(
            differs
        )

    def unlike(self, step: int, calls: Sequence[CallKind], *, whole: bool) -> str:
        """In what the calls of a step differ from those that were learned from; empty where they don't.

        Args:
            step: the evaluation.
            calls: in this step so far.
            whole: whether no more will come.
        """
        known = self.kinds[step] if self.kinds else ((CallKind(),) * self.branches,)
        if any(row[: len(calls)] == tuple(calls) and len(row) >= len(calls) for row in known):
            complete = not whole or any(len(row) == len(calls) for row in known)
            return "" if complete else f"there were {len(calls)} calls where the plan knows {len(known[0])}"
        if len(calls) > max(map(len, known)):
            return f"the plan knows {max(map(len, known))} calls in this step"
        expected = known[0][len(calls) - 1].told if len(known[0]) >= len(calls) else ""
        return calls[-1].told or f"the call is as at the start, but the plan was learned where {expected}"

    def check(self, *, pipeline: str, structure: str, scheduler: str, evaluations: int) -> None:
        """Make sure that the plan belongs to a run.

        Raises:
            StalePlan: it was made for another model, scheduler or number of steps.
        """
        wanted = {"pipeline": pipeline, "structure": structure, "scheduler": scheduler, "evaluations": evaluations}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise StalePlan(
                    f"the rehash plan was made for {name} {getattr(self, name)}, but this is {value}; calibrate again, "
                    "or ask for a speedup or an error instead of a plan"
                )

    def to_json(self, *, indent: int | None = 2) -> str:
        """Write the plan as JSON; `RehashPlan.from_json` reads it back, equal."""
        return json.dumps(asdict(self), indent=indent)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def from_json(text: str) -> RehashPlan:
        """Read a plan.

        Raises:
            StalePlan: the text is no rehash plan, or of another version of the format; names the field that is wrong.
        """
        try:
            data = read_object(text)
            refuse_other(data, "a rehash plan")
            if data.get("version", REHASH_VERSION) != REHASH_VERSION:
                raise StalePlan(f"the rehash plan has format {data['version']}, this version reads {REHASH_VERSION}")
            if "version" not in data:
                raise Malformed("version is missing")
            return decode(RehashPlan, data)
        except Malformed as error:
            raise StalePlan(f"this is not a rehash plan: {error}") from error

    @staticmethod
    def load(path: str | Path) -> RehashPlan:
        """Read a plan from a file.

        Raises:
            BadInput: the file can't be read.
            StalePlan: it holds no rehash plan of this version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"can't read the plan {path}: {getattr(error, 'strerror', None) or error}") from error
        return RehashPlan.from_json(text)
