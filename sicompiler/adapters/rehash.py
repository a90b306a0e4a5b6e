"""Step Rehash in a pipeline: the denoising loop is seen, each call of the denoiser runs in full or from a cut."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.utils._pytree as pytree

from sicompiler.adapters.bars import Watched, begin_of
from sicompiler.adapters.component import ComponentState
from sicompiler.adapters.learning import record, recorder_for
from sicompiler.adapters.parts import parts_of
from sicompiler.adapters.roles import Phase
from sicompiler.capture import flatten_inputs, structure
from sicompiler.errors import BadInput
from sicompiler.rehash.choose import RULES, Subject, by_rule, fastest_within, most_exact_at, planned, with_frontier
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.importance import evaluation_times, scheduler_importance, scheduler_line
from sicompiler.rehash.lessons import Lessons
from sicompiler.rehash.loop import CURRENT, DenoisingLoop
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.request import Rehash
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.timings import Timings
from sicompiler.reports.rehash import RehashReport

if TYPE_CHECKING:
    from sicompiler.adapters.pipeline import PipelineState

log = logging.getLogger("sicompiler")

BAR = "progress_bar"  # what pipelines enter around their denoising loop, or iterate over
COUNTED = "_sicompiler_counted"  # on the step of a scheduler that a loop counts: the scheduler's own


class PipelineRehash:
    """What Step Rehash keeps for one pipeline.

    Args:
        state: of the pipeline.
        request: what was asked for.
    """

    def __init__(self, state: PipelineState, request: Rehash) -> None:
        self.state, self.request = state, request
        self.given = request.loaded()
        if getattr(state.pipe, BAR, None) is None:
            raise BadInput(f"{state.name} has no {BAR}, by which Step Rehash sees its denoising loop")
        self.plans: dict[Setting, RehashPlan] = {}
        self.unskippable: dict[Setting, str] = {}  # settings in which nothing can be skipped, and why
        self.timings = Timings()
        self.lessons: dict[Setting, list[Lessons]] = {}
        self.expected: Setting | None = None  # of lessons from a file: loops of any other are refused
        self.last: DenoisingLoop | None = None  # the newest loop that has begun
        self.resting = False  # loops run in full for a while
        self.exact = False  # loops are seen, but every call runs by the plan of the whole denoiser
        self.learning = False  # loops are learned from, whatever is known
        self.observed = False  # loops leave their final latents behind
        self.timed = False  # seconds are compared: a GPU is waited for before they are read

    @property
    def component(self) -> str:
        """The denoiser that is skipped: the first of the pipeline's."""
        roles = [r for r in self.state.components if r.phase is Phase.DENOISE and r.component != "controlnet"]
        return min(r.component for r in roles) if roles else ""

    @contextlib.contextmanager
    def switched(self, name: Literal["exact", "learning", "observed", "timed"]) -> Iterator[None]:
        """A context in which one of these is on."""
        before = getattr(self, name)
        setattr(self, name, True)
        try:
            yield
        finally:
            setattr(self, name, before)

    # The loop

    def watch(self, pipe: Any) -> None:
        """See the denoising loops of a pipeline begin and end."""
        bar = getattr(pipe, BAR)

        @functools.wraps(bar)
        def watched(*args: Any, **kwargs: Any) -> Any:
            inner = bar(*args, **kwargs)
            return inner if self.resting else Watched(inner, lambda: self._looping(pipe, kwargs.get("total")))

        self.state.patch(BAR, watched)

    @contextlib.contextmanager
    def _looping(self, pipe: Any, total: int | None) -> Iterator[None]:
        """One denoising loop: its state lives as long as this context, however it ends."""
        scheduler = pipe.scheduler
        loop = DenoisingLoop(self, begin=begin_of(scheduler, total))
        loop.setting = Setting("", scheduler_line(scheduler), evaluation_times(scheduler))
        # as it is now: by the end of the loop it has taken all of its steps
        loop.importance = functools.partial(scheduler_importance, copy.deepcopy(scheduler))
        step = getattr(scheduler.step, COUNTED, scheduler.step)  # a loop that was left may not be closed yet

        @functools.wraps(step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            loop.stepped(next((x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)), None))
            return result

        setattr(counted, COUNTED, step)
        CURRENT.set((*CURRENT.get(), loop))
        own = scheduler.__dict__.get("step")  # a user's
        scheduler.__dict__["step"] = counted
        self.last = loop
        began = time.perf_counter()
        try:
            yield
            loop.seconds = time.perf_counter() - began
            self._finished(loop)
        finally:
            if scheduler.__dict__.get("step") is counted:
                scheduler.__dict__.pop("step")
                if own is not None and not hasattr(own, COUNTED):
                    scheduler.__dict__["step"] = own
            CURRENT.set(tuple(other for other in CURRENT.get() if other is not loop))
            loop.end(keep_final=self.observed)

    def loop_of(self, component: ComponentState) -> DenoisingLoop | None:
        """The loop a call of a component belongs to; None where nothing is skipped or learned."""
        loops = CURRENT.get()
        if not loops or loops[-1].owner is not self or component.role.component != self.component:
            return None
        return loops[-1]

    def _finished(self, loop: DenoisingLoop) -> None:
        if loop.recorder is not None:
            self._learn(loop)
        elif loop.plan is not None and loop.stopped:
            log.warning("Step Rehash stopped skipping: %s", loop.stopped)
        elif loop.plan is not None and not loop.skipped:
            reasons = {e.reason for e in loop.evaluations if e.reason} or {"the plan's steps were never reached"}
            log.warning("Step Rehash skipped nothing in this call: %s", "; ".join(sorted(reasons)))

    def kept(self) -> list[torch.Tensor]:
        """The features that the loop at hand keeps."""
        loops = [loop for loop in CURRENT.get() if loop.owner is self]
        return [t for loop in loops for t in (*loop.held, *(loop.recorder.held if loop.recorder else ()))]

    # A call of the denoiser

    def evaluate(
        self,
        component: ComponentState,
        loop: DenoisingLoop,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        device: torch.device,
    ) -> Any:
        """Run the denoiser in full or from the cut, as the plan of the loop says."""
        if not loop.resolved:
            began = time.perf_counter()
            self._resolve(component, loop, args, kwargs)
            loop.busy += time.perf_counter() - began
        if loop.recorder is not None:
            began = time.perf_counter()
            result = record(component, loop, args, kwargs, device, self._now)
            loop.busy += time.perf_counter() - began
            return result
        plan, step, (branch, prediction, reason) = loop.plan, loop.step, loop.next_call()
        began, planning, error = self._now(device), component.planning_seconds, None
        flat = flatten_inputs(args, kwargs)[0]
        if plan is None:
            result = component.run_whole(args, kwargs, device)
        elif prediction is None:
            part = component.part_for(parts_of(plan)[0], args, kwargs)
            result, features = component.run_part(part, flat, loop.held, device)
            error = loop.keep(branch, tuple(features))
        else:
            part = component.part_for(parts_of(plan)[1], args, kwargs)
            given = loop.predict(branch, prediction)
            result = component.run_part(part, [*flat, *given], loop.held, device)
        planning = component.planning_seconds - planning
        loop.busy += planning
        loop.note(Evaluation(step, branch, prediction, reason, error, 0, self._now(device) - began - planning))
        return result

    def _resolve(
        self, component: ComponentState, loop: DenoisingLoop, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Find the plan of a loop, now that the denoiser's graph is known.

        Raises:
            StalePlan: the plan that was given is for another model, scheduler or number of steps.
            BadInput: the loop is of another setting than the lessons of a file.
        """
        program = component.whole_program(args, kwargs)
        mark = structure(program.graph_module.graph)
        assert loop.setting is not None
        loop.setting = setting = replace(loop.setting, structure=mark)
        if self.expected is not None:
            self.expected.check(setting)
        loop.resolved = True
        if self.exact:
            return
        if self.given is not None:
            self.given.check(
                pipeline=self.state.name,
                structure=mark,
                scheduler=setting.scheduler,
                evaluations=len(setting.times),
            )
            loop.plan = self.given
        elif self.learning:
            loop.recorder = recorder_for(component, program)
        elif setting in self.plans:
            loop.plan = self.plans[setting]
        else:
            loop.plan = None if setting in self.unskippable else self._adapted(setting, loop)
            if setting in self.unskippable:
                log.warning("Step Rehash skips nothing in this call: %s", self.unskippable[setting])
            elif loop.plan is None:
                log.warning("Step Rehash: this call runs in full and is learned from; later ones will skip")
                loop.recorder = recorder_for(component, program)

    def _adapted(self, setting: Setting, loop: DenoisingLoop) -> RehashPlan | None:
        """A plan from what was learned with other steps or another scheduler, uncertified."""
        known = next((s for s in self.plans if s.is_like(setting) and s in self.lessons), None)
        if known is None:
            return None
        importance = loop.importance()
        self.lessons[setting] = [rows.at(setting.times, importance) for rows in self.lessons[known]]
        try:
            plan = self.plan_for(setting, like=self.plans[known])
        except BadInput as error:  # a call that can be made in full is not refused
            del self.lessons[setting]
            self.unskippable[setting] = str(error)
            return None
        log.warning(
            "Step Rehash: planned again for %d evaluations of %s from what was learned of %d of %s; not certified",
            len(setting.times),
            setting.scheduler.partition("(")[0],
            len(known.times),
            known.scheduler.partition("(")[0],
        )
        self.plans[setting] = plan
        return plan

    def _now(self, device: torch.device) -> float:
        """The time; where it will be compared, the device has done by then what it was asked for."""
        if device.type == "cuda" and (self.timed or (self.last is not None and self.last.recorder is not None)):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    # Lessons and plans

    def _learn(self, loop: DenoisingLoop) -> None:
        """Keep what a finished loop showed, and plan from it where nothing more is to come."""
        recorder, setting = loop.recorder, loop.setting
        assert recorder is not None and setting is not None
        lessons = recorder.lessons(len(setting.times), (loop.seconds - loop.busy) / len(setting.times))
        if not lessons:
            steps = len(setting.times)
            why = f"the loop ran {self.component} at {recorder.recorded(0)} of its {steps} steps"
            if loop.final is None:
                why = f"the loop took no step of the scheduler of {self.state.name}: does it use a copy?"
            log.warning("Step Rehash learned nothing: %s", why)
            if loop.final is None or loop.step >= steps:  # it was not interrupted: the next one will be like it
                self.unskippable[setting] = why
            return
        norm = float(loop.final.norm()) if loop.final is not None else 1.0
        if setting not in self.lessons:
            importance = loop.importance()
            self.lessons[setting] = [
                Lessons(cut.positions, names, cut.nbytes, setting.times, importance)
                for cut, names in recorder.names.items()
            ]
        for rows in self.lessons[setting]:
            lesson = next((x for x, c in zip(lessons, recorder.cuts, strict=True) if c.positions == rows.cut), None)
            if lesson is not None:
                rows.add(lesson, norm)
        if self.learning:
            return
        try:
            self.plans[setting] = self.plan_for(setting)
        except BadInput as error:  # the call is done: its frames are not lost for it
            self.unskippable[setting] = str(error)
            log.warning("Step Rehash will skip nothing: %s", error)

    def subject(self, setting: Setting) -> Subject:
        """What plans are made for."""
        branches = max(len(x.grams) for rows in self.lessons[setting] for x in rows.lessons)
        return Subject(self.state.name, self.component, setting.structure, setting.scheduler, branches)

    def candidates(self, setting: Setting) -> list[RehashPlan]:
        """Every plan that is the best of its cut and number of full evaluations."""
        request, subject, lessons = self.request, self.subject(setting), self.lessons[setting]
        if request.strategy != "planned":
            return by_rule(request.strategy, subject, lessons)
        return planned(subject, lessons, request.predictor, request.order)

    def by_rules(self, setting: Setting) -> list[RehashPlan]:
        """The plans of the rules to compare with; none where a rule was asked for."""
        if self.request.strategy != "planned":
            return []
        subject, lessons = self.subject(setting), self.lessons[setting]
        return [plan for strategy in RULES for plan in by_rule(strategy, subject, lessons)]

    def plan_for(self, setting: Setting, like: RehashPlan | None = None) -> RehashPlan:
        """The plan that meets the target by what was learned, unverified.

        Args:
            setting: what it is for.
            like: the plan of another setting that met the target. Where that is an error, its predicted error is what
                the plan has to keep: predictions compare better with one another than with what is measured.

        Raises:
            BadInput: the target can't be reached, or can't be told from what was learned.
        """
        plans, request = self.timings.corrected(self.candidates(setting)), self.request
        if not plans:
            raise BadInput(f"no plan skips any of {len(setting.times)} evaluations within the budget")
        if request.speedup is not None:
            plan = most_exact_at(plans, request.speedup)
        elif like is not None:
            plan = fastest_within(plans, like.predicted_error)
        elif request.rel_error is not None:
            plan = fastest_within(plans, request.rel_error)
        else:
            raise BadInput("psnr= can only be met by measuring: give calls, some of them held out")
        return with_frontier(plan, plans)

    def report(self) -> RehashReport:
        """What happened in the newest loop."""
        loop = self.last
        if loop is None:
            plan = self.given or next(iter(self.plans.values()), None)
        else:
            plan = loop.plan or (self.plans.get(loop.setting) if loop.setting is not None else None)
        return RehashReport(self.state.name, self.component, plan, tuple(loop.evaluations) if loop else ())
