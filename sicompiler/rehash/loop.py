"""The state of one denoising loop: what is kept, what is next. It belongs to one call of a pipeline and ends there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace

import torch

from sicompiler.planners.steps import Floats, Prediction
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.recorder import Recorder
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.sketch import PIECE, Snapshot

CURRENT: ContextVar[tuple[DenoisingLoop, ...]] = ContextVar("sicompiler_denoising_loops", default=())


class DenoisingLoop:
    """Counts steps and calls, keeps features, and decides at each call.

    Args:
        owner: who keeps the plans; only its denoiser is counted.
        begin: steps that the scheduler leaves out at the start, as image-to-image does.

    Attributes:
        plan: None where nothing is skipped, as while learning.
        recorder: writes down what is learned.
        resolved: whether plan and recorder are settled; they wait for the first call, which shows the graph.
        final: the latents after the newest step.
        seconds: from begin to end of the loop.
        busy: seconds of these that capturing and learning took, the evaluations themselves included.
    """

    def __init__(self, owner: object, begin: int = 0) -> None:
        self.owner, self.step = owner, begin
        self.plan: RehashPlan | None = None
        self.recorder: Recorder | None = None
        self.resolved = False
        self.setting: Setting | None = None
        self.importance: Callable[[], Floats] = _unknown
        self.final: torch.Tensor | None = None
        self.seconds = self.busy = 0.0
        self.calls = 0
        self.evaluations: list[Evaluation] = []
        self.stopped = ""  # why skipping has ended
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
        """Of the features that are held now."""
        return sum(t.nbytes for t in self.held)

    def stepped(self, latents: torch.Tensor | None) -> None:
        """The scheduler has taken a step: features nobody will read are freed.

        Args:
            latents: what it gave.
        """
        self.final = latents
        self.step, self.calls = self.step + 1, 0
        last = self.plan.last_use if self.plan else {}
        self._kept = {key: kept for key, kept in self._kept.items() if last.get(key[1], -1) >= self.step}

    def next_call(self) -> tuple[int, Prediction | None, str]:
        """Branch of the call that begins, how it predicts its feature (None: it runs in full), and why not."""
        branch, self.calls = self.calls, self.calls + 1
        plan = self.plan
        prediction = plan.steps[self.step] if plan and self.step < plan.evaluations else None
        if plan is None or prediction is None:
            return branch, None, ""
        if self.stopped:
            return branch, None, self.stopped
        if branch >= plan.branches:
            return branch, None, f"the plan knows {plan.branches} calls a step"
        if any((branch, source) not in self._kept for source in prediction.sources):
            return branch, None, "the loop began later than the plan"
        return branch, prediction, ""

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
        self.importance = _unknown  # it has a scheduler
        if not keep_final:
            self.final = None
        if self.recorder is not None:
            self.recorder.free()

    def _error(self, branch: int, snapshot: Snapshot, prediction: Prediction) -> float | None:
        """Relative error of a prediction of what is here; None where its sources are not held."""
        if any((branch, source) not in self._kept for source in prediction.sources):
            return None
        kept = [self._kept[branch, source] for source in prediction.sources]
        rows = [
            _difference(value, [parts[index] for parts in kept], prediction.weights)
            for index, value in enumerate(snapshot)
        ]
        off, total = torch.stack(rows).sum(0).tolist()  # one transfer from the device
        return math.sqrt(off / total) if total > 0 else None


def _unknown() -> Floats:
    raise AssertionError("a loop is told its scheduler when it begins")


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
