"""Calls of a pipeline, made to be compared: what each gave, how far it is from the full run, what it took."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sicompiler.errors import BadInput
from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.verify import frames_of, rewinder
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.loop import DenoisingLoop

STEPS = "num_inference_steps"  # what all pipelines of diffusers call it

Call = Mapping[str, Any]
EachStep = Callable[[DenoisingLoop], None]


@dataclass(frozen=True)
class Run:
    """What one call of a pipeline gave.

    Attributes:
        frames: as tensors; none of a run that was ended early.
        final: the latents at the end of the denoising loop, or where the run was ended.
        evaluations: of the denoiser.
        seconds: of the loop, without capturing the denoiser; of a loop that was learned from, those beside it.
        outside: seconds of the call before and after its loop, planning included; nan where it was ended early.
    """

    frames: list[torch.Tensor]
    final: torch.Tensor
    evaluations: tuple[Evaluation, ...]
    seconds: float
    outside: float = 0.0

    @property
    def steps(self) -> int:
        """Evaluations, those of several branches of guidance counted once."""
        return len({e.step for e in self.evaluations})

    @property
    def guard(self) -> dict[int, float]:
        """The worst error that the guard measured, by evaluation."""
        found: dict[int, float] = {}
        for evaluation in self.evaluations:
            if evaluation.guard_error is not None:
                found[evaluation.step] = max(evaluation.guard_error, found.get(evaluation.step, 0.0))
        return found


@dataclass(frozen=True)
class Difference:
    """One run against the full one.

    Attributes:
        rel_error: of the final latents, by 2-norms.
        psnr: of the frames, in dB.
        guard: errors the guard measured, by evaluation.
        frames: relative error of the frames, by 2-norms.
    """

    rel_error: float
    psnr: float
    guard: Mapping[int, float]
    frames: float = 0.0


def difference(run: Run, reference: Run) -> Difference:
    """Compare a run with the full one."""
    if not bool(torch.isfinite(reference.final).all()):
        raise BadInput("a full run ends in latents that are not finite: nothing can be compared with it")
    if not bool(torch.isfinite(run.final).all()):
        return Difference(math.inf, -math.inf, run.guard, math.inf)
    off = relative_error(run.final, reference.final)
    pairs = list(zip(run.frames, reference.frames, strict=True))
    squares = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    mean = squares / max(sum(a.numel() for a, _ in pairs), 1)
    psnr = math.inf if mean == 0 else 10 * math.log10(peak_of(reference.frames) ** 2 / mean)
    whole = sum(float(b.double().square().sum()) for _, b in pairs)
    return Difference(off, psnr, run.guard, math.sqrt(squares / whole) if whole else off)


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """The relative error of latents, by 2-norms; infinite where they are not finite."""
    off = float((found.double() - reference.double()).norm() / reference.double().norm())
    return off if math.isfinite(off) else math.inf


def peak_of(frames: Sequence[torch.Tensor]) -> float:
    """The greatest value of a pixel."""
    return 1.0 if frames and frames[0].is_floating_point() else 255.0


class RunEnded(Exception):
    """A run has shown what it was made for: what is left of it is not made."""


def run_call(state: CompiledPipeline, call: Call, each_step: EachStep | None = None) -> Run:
    """Call the pipeline; random generators among the arguments, and torch's own, are left as they were.

    Args:
        state: of the pipeline.
        call: keyword arguments.
        each_step: is given the loop after every step; where it raises `RunEnded`, the run ends.

    Raises:
        BadInput: the pipeline has no denoising loop, or none whose steps are seen.
    """
    assert state.rehash is not None
    rewind, began, output, final = rewinder((), dict(call)), time.perf_counter(), None, None

    def stepped(loop: DenoisingLoop) -> None:
        nonlocal final
        final = loop.final
        if each_step is not None:
            each_step(loop)

    try:
        state.rehash.each_step = stepped
        with state.rehash.switched("observed"), contextlib.suppress(RunEnded):
            output = state.pipe(**call)
    finally:
        state.rehash.each_step = None
        rewind()
    loop = state.rehash.last
    if loop is None:
        raise BadInput(f"no denoising loop was seen in this call of {state.name}: Step Rehash can't calibrate it")
    if final is None:
        raise BadInput(f"the loop took no step of the scheduler of {state.name}: does it use a copy?")
    frames = [frame.cpu() for frame in frames_of(output)]  # on the device they would take from the budget
    outside = math.nan if output is None else time.perf_counter() - began - loop.lasted
    return Run(frames, final.cpu(), tuple(loop.evaluations), loop.seconds - loop.busy, outside)


def ending_after(steps: int) -> EachStep:
    """Ends a run after so many steps: what comes behind its loop is not made."""

    def each_step(loop: DenoisingLoop) -> None:
        if loop.step >= steps:
            raise RunEnded

    return each_step


def shortened(pipe: Any, call: Call, share: float) -> dict[str, Any] | None:
    """A call with a share of its denoising steps; None where the pipeline is not told how many by number."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(STEPS)
    steps = call.get(STEPS, None if parameter is None else parameter.default)
    return {**call, STEPS: max(round(share * steps), 1)} if isinstance(steps, int) else None


def tell(state: CompiledPipeline, what: str, done: int, total: int) -> None:
    """Tell whoever watches how far a calibration is."""
    if state.progress is not None:
        state.progress(f"Step Rehash: {what}", done, total)
