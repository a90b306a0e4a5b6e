"""Denoising loops of a pipeline, seen: where each begins and ends, and every step its scheduler takes."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Iterator, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree

from sicompiler.pipelines.rehash.bars import Watched, begin_of
from sicompiler.pipelines.rehash.guidance import guidance_of
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.rehash.importance import evaluation_times, scheduler_importance, scheduler_line
from sicompiler.rehash.kinds import TIME
from sicompiler.rehash.loop import CURRENT, DenoisingLoop
from sicompiler.rehash.setting import Setting

if TYPE_CHECKING:
    from sicompiler.pipelines.rehash.hooks import PipelineRehash

BAR = "progress_bar"  # what pipelines enter around their denoising loop, or iterate over
COUNTED = "_sicompiler_counted"  # on the step of a scheduler that a loop counts: the scheduler's own


def watch(rehash: PipelineRehash, pipe: Any) -> None:
    """See the denoising loops of a pipeline begin and end."""
    bar = getattr(pipe, BAR)

    @functools.wraps(bar)
    def watched(*args: Any, **kwargs: Any) -> Any:
        inner = bar(*args, **kwargs)
        return (
            inner
            if rehash.mode is Mode.RESTING
            else Watched(inner, lambda: looping(rehash, pipe, _total(*args, **kwargs)))
        )

    rehash.state.patch(BAR, watched)


def _total(iterable: Any = None, total: int | None = None, **_: Any) -> int | None:
    """How many steps a progress bar was told of."""
    return len(iterable) if total is None and isinstance(iterable, Sized) else total


@contextlib.contextmanager
def looping(rehash: PipelineRehash, pipe: Any, total: int | None) -> Iterator[None]:
    """One denoising loop: its state lives as long as this context, however it ends.

    Args:
        rehash: of the pipeline.
        pipe: the pipeline.
        total: steps that its progress bar was told of.
    """
    scheduler = pipe.scheduler
    loop = DenoisingLoop(rehash)
    begin = begin_of(scheduler, total)
    loop.setting = Setting("", scheduler_line(scheduler), (), guidance_of(pipe))
    _place_in(loop, scheduler, begin, total)

    def placed(timestep: Any) -> None:
        nonlocal begin
        places = _places_of(scheduler, timestep)
        if places and begin not in places:  # the bar was told of other steps than those that run
            begin = places[0]
            _place_in(loop, scheduler, begin, total)
            loop.resolved = loop.recorder is not None  # its plan was for other steps

    loop.placed = placed
    step = getattr(scheduler.step, COUNTED, scheduler.step)  # a loop that was left may not be closed yet

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if loop.step == 0:
            placed(kwargs.get(TIME, args[1] if len(args) > 1 else None))
        result = step(*args, **kwargs)
        loop.stepped(next((x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)), None))
        if rehash.each_step is not None:
            rehash.each_step(loop)
        return result

    setattr(counted, COUNTED, step)
    CURRENT.set((*CURRENT.get(), loop))
    own = scheduler.__dict__.get("step")  # a user's
    scheduler.__dict__["step"] = counted
    rehash.last = loop
    began, clock = time.perf_counter(), rehash.clock()
    try:
        yield
        loop.seconds, loop.lasted = rehash.clock() - clock, time.perf_counter() - began
        rehash.finished(loop)
    finally:
        loop.seconds = loop.seconds or rehash.clock() - clock  # also of one that ended early
        if scheduler.__dict__.get("step") is counted:
            scheduler.__dict__.pop("step")
            if own is not None and not hasattr(own, COUNTED):
                scheduler.__dict__["step"] = own
        CURRENT.set(tuple(other for other in CURRENT.get() if other is not loop))
        loop.end(keep_final=rehash.observed)


def _place_in(loop: DenoisingLoop, scheduler: Any, begin: int, total: int | None) -> None:
    """Tell a loop which evaluations of its scheduler it will make: a plan is for the steps that run."""
    times, one_each = evaluation_times(scheduler), getattr(scheduler, "order", 1) == 1
    end = min(begin + total, len(times)) if one_each and total else len(times)
    assert loop.setting is not None
    loop.setting = replace(loop.setting, times=times[begin:end])
    now = copy.deepcopy(scheduler)  # by the end of the loop it has taken all of its steps
    loop.importance = lambda: scheduler_importance(now)[begin:end]


def _places_of(scheduler: Any, timestep: Any) -> list[int]:
    """Which of the scheduler's timesteps one can be; none where it is something else."""
    known = getattr(scheduler, "timesteps", None)
    if not isinstance(known, torch.Tensor) or not isinstance(timestep, (torch.Tensor, int, float)):
        return []
    told = torch.as_tensor(timestep)
    if not told.numel():
        return []
    newest = told.max().cpu().double()  # repeated for every sample; tokens of a first frame that is given have none
    return [int(i) for i in (known.cpu().double() == newest).nonzero()]
