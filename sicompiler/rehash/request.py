"""What a user asks of Step Rehash: exactly one target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from sicompiler.errors import BadInput
from sicompiler.planners.skip_schedule import Predictor
from sicompiler.rehash.plan import RehashPlan

Strategy = Literal["planned", "uniform", "taylor", "similarity", "deepcache"]


@dataclass(frozen=True)
class Rehash:
    """A request to skip part of some denoising evaluations. Exactly one of the first four is given.

    Attributes:
        speedup: of the denoising loop, as the ratio of seconds, above 1.
        psnr: the least of the decoded frames against the full run, in dB.
        rel_error: the greatest of the final latents against the full run: 2-norm of the difference over that of the
            full run's.
        plan: made earlier (a `RehashPlan`, or the path of its JSON).
        calls: keyword arguments of calls of the pipeline (prompts, seeds as `generator`s, sizes, steps): those before
            the last `held_out` are learned from, the rest verify. None at all: nothing is skipped, unless
            `accept_worse`: then the first call of the pipeline runs in full and is learned from.
        held_out: how many of the calls are kept for verification.
        order: of the predictor at most, 0 to 2; order k keeps k + 1 features.
        predictor: "least squares" or "lagrange".
        strategy: "planned", or a rule to compare with: "uniform" reuse, "taylor" (a line through the last two),
            "similarity" (Streamlined Inference's threshold), "deepcache" (every n-th in full).
        lessons: a file that keeps what the calls show, written after every one of them. Calls that are in it are not
            run again, so that a calibration that was interrupted goes on where it was.
        accept_worse: skip by a plan that was never checked, or ends further from the full run than fewer steps that
            take the same time.
    """

    speedup: float | None = None
    psnr: float | None = None
    rel_error: float | None = None
    plan: RehashPlan | str | Path | None = None
    calls: Sequence[Mapping[str, Any]] = field(default=(), compare=False)
    held_out: int = 0
    order: int = 2
    predictor: Predictor = "least squares"
    strategy: Strategy = "planned"
    lessons: str | Path | None = field(default=None, compare=False)
    accept_worse: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            BadInput: no target or several, or one that can't be meant.
        """
        self._check_target()
        self._check_choices()
        self._check_calls()

    def _check_target(self) -> None:
        targets = {"speedup": self.speedup, "psnr": self.psnr, "rel_error": self.rel_error, "plan": self.plan}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) != 1:
            raise BadInput(f"Rehash takes exactly one of {', '.join(targets)}; got {' and '.join(given) or 'none'}")
        for name in ("speedup", "psnr", "rel_error"):
            if not isinstance(targets[name], (Real, type(None))):
                raise BadInput(f"{name} is a number, got {targets[name]!r}")
        if not isinstance(self.plan, (RehashPlan, str, Path, type(None))):
            raise BadInput(f"plan is a RehashPlan or the path of one, got {self.plan!r}")
        if self.speedup is not None and self.speedup <= 1:
            raise BadInput(f"a speed-up is above 1, got {self.speedup}; leave rehash out to run every step in full")
        if self.rel_error is not None and not 0 < self.rel_error < 1:
            raise BadInput(f"rel_error is between 0 and 1, got {self.rel_error}")
        if self.psnr is not None and self.psnr <= 0:
            raise BadInput(f"psnr is in dB and above 0, got {self.psnr}")

    def _check_choices(self) -> None:
        if self.order not in (0, 1, 2):
            raise BadInput(f"order is 0, 1 or 2, got {self.order}")
        if self.predictor not in get_args(Predictor):
            raise BadInput(f"predictor is one of {', '.join(get_args(Predictor))}, got {self.predictor!r}")
        if self.strategy not in get_args(Strategy):
            raise BadInput(f"strategy is one of {', '.join(get_args(Strategy))}, got {self.strategy!r}")

    def _check_calls(self) -> None:
        if not isinstance(self.calls, Sequence) or not all(isinstance(call, Mapping) for call in self.calls):
            raise BadInput("calls is a list of dicts, the keyword arguments of one call each")
        if not 0 <= self.held_out <= max(len(self.calls) - 1, 0):
            raise BadInput(f"of {len(self.calls)} calls at most {max(len(self.calls) - 1, 0)} can be held out")
        if self.psnr is not None and not self.held_out:
            raise BadInput("psnr= can only be met by measuring: give calls=[...] with held_out of at least 1")
        if self.plan is not None and self.calls:
            raise BadInput("a plan= is used as it is: leave the calls out, or ask for a target instead of the plan")
        if self.lessons is not None and not self.calls:
            raise BadInput("lessons= keeps what calls=[...] show; give the calls too")

    def loaded(self) -> RehashPlan | None:
        """The plan that was given, read from its file if need be.

        Raises:
            StalePlan: the file holds no plan of this version.
        """
        if isinstance(self.plan, (str, Path)):
            return RehashPlan.load(self.plan)
        return self.plan
