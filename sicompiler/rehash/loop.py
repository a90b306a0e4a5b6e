"""The state of one denoising loop: what is kept, what is next. It belongs to one call of a pipeline and ends there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from sicompiler.planners.skip_schedule import Floats, Prediction
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.kinds import UNWATCHED, CallKind, FirstCalls
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.recorder import LoopRecorder
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.sketch import PIECE, Snapshot

CURRENT: ContextVar[tuple[DenoisingLoop, ...]] = ContextVar("sicompiler_denoising_loops", default=())


@dataclass(frozen=True)
class NextCall:
    """How the call that begins runs.

    Attributes:
        branch: calls since the last step.
        prediction: of its feature; None where it runs in full.
        reason: why it runs in full though the plan would skip, or why nothing is kept of it.
        kept: whether its feature is kept, as the plan says; no feature of a kind of call the plan does not know is.
    """

    branch: int
    prediction: Prediction | None = None
    reason: str = ""
    kept: bool = True


class DenoisingLoop:
    """Counts steps and calls, keeps features, and decides at each call.

    Args:
        owner: who keeps the plans; only its denoiser is counted.

    Attributes:
        step: steps the scheduler has taken in this loop, wherever in its times that began.
        plan: None where nothing is skipped, as while learning.
        recorder: writes down what is learned.
        resolved: whether plan and recorder are settled; they wait for the first call, which shows the graph.
        placed: told the timestep of the first evaluation, finds the place of the loop among those of its scheduler.
        final: the latents after the newest step.
        seconds: from begin to end of the loop.
        lasted: the same by the clock of the whole call.
        busy: seconds of these that capturing and learning took, the evaluations themselves included.
    """

    def __init__(self, owner: object) -> None:
        self.owner, self.step = owner, 0
        self.plan: RehashPlan | None = None
        self.recorder: LoopRecorder | None = None
        self.resolved = False
        self.setting: Setting | None = None
        self.importance: Callable[[], Floats] = _unknown
        self.placed: Callable[[Any], None] = _nowhere
        self.final: torch.Tensor | None = None
        self.seconds = self.busy = self.lasted = 0.0
        self.calls = 0
        self.evaluations: list[Evaluation] = []
        self.stopped = ""  # why skipping has ended
        self.first_calls: FirstCalls | None = None
        self.kinds: list[list[CallKind]] = []  # of the calls so far, by step and branch
        self.dropped = ""  # why features are gone that the plan would use
        self.why = ""  # nothing is skipped
        self._kept: dict[tuple[int, int], Snapshot] = {}

    @property
    def skipped(self) -> int:
        """How many evaluations were skipped so far."""
        return sum(e.prediction is not None for e in self.evaluations)

    @property
    def held(self) -> list[torch.Tensor]:
        """The features that are held now."""
        return [t for snapshot in self._kept.values() for t in snapshot]

    @property
    def held_bytes(self) -> int:
        """Bytes of the features that are cached now."""
        return sum(t.nbytes for t in self.held)

    @property
    def keeps_nothing(self) -> bool:
        """Whether no feature is held, and none of the evaluation at hand will be read."""
        return not self._kept and (self.plan is None or self.step not in self.plan.last_use)

    def stepped(self, latents: torch.Tensor | None) -> None:
        """The scheduler has taken a step: features nobody will read are freed.

        Args:
            latents: what it gave.
        """
        self.final = latents
        if (
            self.plan is not None
            and self.calls
            and (differs := self.plan.unlike(self.step, self.kinds[-1], whole=True))
        ):
            self._kept.clear()  # the plan knows more calls in this step: which of them these were can't be told
            self.dropped = f"in the step before, {differs}"
        self.step, self.calls = self.step + 1, 0
        last = self.plan.last_use if self.plan else {}
        self._kept = {key: kept for key, kept in self._kept.items() if last.get(key[1], -1) >= self.step}

    def begins(self, kind: CallKind) -> None:
        """A call of the denoiser begins. What is kept of its branch goes if it is of another kind than the one before.

        Args:
            kind: what it is to the first call of its branch.
        """
        branch = self.calls
        before = self.kind_before(branch)
        if not self.calls:
            self.kinds.append([])
        self.kinds[-1].append(kind)
        if before is not None and before.call != kind.call:
            self._drop(branch)
            if self.recorder is not None:
                self.recorder.forget(branch)

    def unwatched(self) -> None:
        """The call that has begun is not learned from: no feature of it can be used, or predicted."""
        branch, kind = self.calls - 1, self.kinds[-1][-1]
        self.kinds[-1][-1] = kind._replace(call=f"{UNWATCHED}: {kind.call}")
        if self.recorder is not None:
            self.recorder.forget(branch)

    def kind_before(self, branch: int) -> CallKind | None:
        """The kind of the newest call of a branch so far; None before the first."""
        return next((kinds[branch] for kinds in reversed(self.kinds) if branch < len(kinds)), None)

    def next_call(self) -> NextCall:
        """How the call that has begun runs."""
        branch, self.calls = self.calls, self.calls + 1
        plan = self.plan
        if plan is None or self.step >= plan.evaluations:
            return NextCall(branch, reason=self.why)
        prediction = plan.steps[self.step]
        if self.stopped:
            return NextCall(branch, reason=self.stopped if prediction else "")
        if differs := plan.unlike(self.step, self.kinds[-1], whole=False):
            self._drop(branch)
            return NextCall(branch, reason=differs, kept=False)
        if prediction is None:
            return NextCall(branch)
        if any((branch, source) not in self._kept for source in prediction.sources):
            return NextCall(branch, reason=self.dropped or "the evaluations it is predicted from were not kept")
        return NextCall(branch, prediction)

    def _drop(self, branch: int) -> None:
        """Let go of what is kept of a branch."""
        if any(key[0] == branch for key in self._kept):
            self._kept = {key: kept for key, kept in self._kept.items() if key[0] != branch}
            self.dropped = f"features were dropped at step {self.step}: the calls have changed"

    def predict(self, branch: int, prediction: Prediction) -> Snapshot:
        """The feature, from those that are held. With one source of weight one it is that feature, not a copy."""
        kept = [self._kept[branch, source] for source in prediction.sources]
        if prediction.weights == (1.0,):
            return kept[0]
        return tuple(_combined(parts, prediction.weights) for parts in zip(*kept, strict=True))

    def keep(self, branch: int, snapshot: Snapshot) -> float | None:
        """Keep the feature of a full evaluation, if it will be read; compare it first with what was predicted of it.

        Returns:
            The relative error of what the guard predicts here; None where it does not measure.
        """
        plan = self.plan
        if plan is None or self.step >= plan.evaluations or branch >= plan.branches:
            return None
        check = plan.checks[self.step]
        error = None if check is None else self._error(branch, snapshot, check.prediction)
        if not bool(torch.isfinite(torch.stack([_total(t) for t in snapshot])).all()):
            self.stopped = f"the feature has values that are not finite at step {self.step}"
        elif check is not None and error is not None and error > check.bound:
            self.stopped = f"the guard measured an error of {error:.2g} at step {self.step}, above {check.bound:.2g}"
        if self.step in plan.last_use and not self.stopped:
            self._kept[branch, self.step] = snapshot
        if self.stopped:
            self._kept.clear()
        return error

    def note(self, evaluation: Evaluation) -> None:
        """Put down what happened."""
        self.evaluations.append(replace(evaluation, held_bytes=self.held_bytes))

    def end(self, *, keep_final: bool) -> None:
        """Free everything; the final latents stay where somebody wants to see them."""
        self._kept.clear()
        self.importance, self.placed, self.first_calls = _unknown, _nowhere, None  # they have a scheduler, and a model
        if not keep_final:
            self.final = None
        if self.recorder is not None:
            self.recorder.free()

    def _error(self, branch: int, snapshot: Snapshot, prediction: Prediction) -> float | None:
        """Relative error of a prediction of what is here; None where its sources are not held."""
        if any((branch, source) not in self._kept for source in prediction.sources):
            return None
        kept = [self._kept[branch, source] for source in prediction.sources]
        if any(a.stride() != b.stride() for parts in kept for a, b in zip(parts, snapshot, strict=True)):
            return None  # they are compared as they lie
        rows = [
            _difference(value, [parts[index] for parts in kept], prediction.weights)
            for index, value in enumerate(snapshot)
        ]
        off, total = torch.stack(rows).sum(0).tolist()  # one transfer from the device
        return math.sqrt(off / total) if total > 0 else None


def _unknown() -> Floats:
    raise AssertionError("a loop is told its scheduler when it begins")


def _nowhere(timestep: Any) -> None:
    """A loop that has ended has no place."""


def _combined(parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum, in the dtype and layout of the parts, with no temporary beside the result."""
    result = torch.mul(parts[0], weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        result.add_(part, alpha=weight)
    return result


def _total(value: torch.Tensor) -> torch.Tensor:
    """The sum, piece by piece, where the tensor lies; not finite if an entry is not."""
    flat = value.as_strided((value.numel(),), (1,))  # it is dense
    return torch.stack([flat[low : low + PIECE].sum(dtype=torch.float32) for low in range(0, len(flat), PIECE)]).sum()


def _difference(value: torch.Tensor, parts: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """[2]: squared norms of `value - sum w_j parts_j` and of `value`, piece by piece, where they lie."""
    flat = [t.as_strided((t.numel(),), (1,)) for t in (value, *parts)]  # all are dense, in one order
    found = torch.zeros(2, dtype=torch.float64, device=value.device)
    for low in range(0, value.numel(), PIECE):
        own, *others = (t[low : low + PIECE] for t in flat)
        own = own.float()
        norm = own.square().sum()
        for other, weight in zip(others, weights, strict=True):
            own = torch.sub(own, other.float(), alpha=weight)
        found += torch.stack((own.square().sum(), norm))
    return found
