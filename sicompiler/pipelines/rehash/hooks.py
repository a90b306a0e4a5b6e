"""Step Rehash in a pipeline: the denoising loop is seen, each call of the denoiser runs in full or from a cut."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import structure
from sicompiler.device import synchronize
from sicompiler.errors import BadInput
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.rehash.guidance import guidance_of
from sicompiler.pipelines.rehash.learning import cuts_of, learn_from, nothing_learned, record
from sicompiler.pipelines.rehash.looping import BAR
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.parts import kind_of, named_inputs, parts_of
from sicompiler.pipelines.rehash.script import Script
from sicompiler.pipelines.roles import Phase
from sicompiler.planners.min_cut import FeatureCut
from sicompiler.rehash.choose import PlanInputs, by_rule, fastest_within, most_exact_at, planned, with_frontier
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.kinds import TIME
from sicompiler.rehash.lessons import CutStats
from sicompiler.rehash.loop import CURRENT, DenoisingLoop, NextCall
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.recorder import LoopRecorder, ProbeTurn
from sicompiler.rehash.request import Rehash
from sicompiler.rehash.setting import Setting
from sicompiler.rehash.timings import Timings
from sicompiler.reports.rehash import RehashReport
from sicompiler.runtime.call import Call

if TYPE_CHECKING:
    from sicompiler.pipelines.pipeline import CompiledPipeline

log = logging.getLogger("sicompiler")

CHECK = "calibrate on calls like this one (calls=[...]), or take it unchecked with accept_worse=True"
NO_CALLS = (
    "no plan was checked yet: give Rehash calls=[...], keyword arguments of a few calls like yours, which it may make "
    "many times; or take what one call shows, unchecked, with accept_worse=True"
)


class PipelineRehash:
    """What Step Rehash keeps for one pipeline.

    Args:
        state: of the pipeline.
        request: what was asked for.
    """

    def __init__(self, state: CompiledPipeline, request: Rehash) -> None:
        self.state, self.request = state, request
        self.given = request.loaded()
        if getattr(state.pipe, BAR, None) is None:
            raise BadInput(f"{state.name} has no {BAR}, by which Step Rehash sees its denoising loop")
        self.plans: dict[Setting, RehashPlan] = {}
        self.unskippable: dict[Setting, str] = {}  # settings in which nothing can be skipped, and why
        self.timings = Timings()
        self.lessons: dict[Setting, list[CutStats]] = {}
        self._marks: dict[Hashable, str] = {}  # by call: the structure of the denoiser's graph
        self._cuts: dict[Hashable, Mapping[FeatureCut, tuple[str, ...]]] = {}  # by call: what is watched while learning
        self.expected: Setting | None = None  # of lessons from a file: loops of any other are refused
        self.last: DenoisingLoop | None = None  # the newest loop that has begun
        self.mode = Mode.PLANNED
        self.observed = False  # loops leave their final latents behind
        self._said = ""  # about the newest call, if anything
        self.each_step: Callable[[DenoisingLoop], None] | None = None  # told of every step of a run that is compared
        self.script: Script | None = None  # of the full run of the call that is made
        self.turn = ProbeTurn()  # which cuts the run that is learned from probes where
        self.timed = False  # seconds are compared: a GPU is waited for before they are read

    @property
    def component(self) -> str:
        """The denoiser that is skipped: the first of the pipeline's."""
        roles = [r for r in self.state.components if r.phase is Phase.DENOISE and r.component != "controlnet"]
        return min(r.component for r in roles) if roles else ""

    @contextlib.contextmanager
    def running(self, mode: Mode) -> Iterator[None]:
        """A context in which loops that begin are run in a mode."""
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before

    @contextlib.contextmanager
    def switched(self, name: Literal["observed", "timed"]) -> Iterator[None]:
        """A context in which one of these is on, in any mode."""
        before = getattr(self, name)
        setattr(self, name, True)
        try:
            yield
        finally:
            setattr(self, name, before)

    # The loop

    def loop_of(self, component: CompiledComponent) -> DenoisingLoop | None:
        """The loop a call of a component belongs to; None where nothing is skipped or learned."""
        loops = CURRENT.get()
        if not loops or loops[-1].owner is not self or component.role.component != self.component:
            return None
        return loops[-1]

    def finished(self, loop: DenoisingLoop) -> None:
        """A loop has come to its end: what it showed is kept, and what it did not do is said."""
        if loop.recorder is not None:
            self._learn(loop)
            return
        if loop.plan is None:
            return
        reasons = list(dict.fromkeys(e.reason for e in loop.evaluations if e.reason))
        if loop.stopped:
            self.say(f"Step Rehash stopped skipping: {loop.stopped}")
        elif not loop.skipped:
            self.say(f"Step Rehash skips nothing: {'; '.join(reasons or ['the steps of the plan were never reached'])}")
        elif more := sum(bool(e.reason) and any(loop.plan.steps[e.step : e.step + 1]) for e in loop.evaluations):
            self.say(
                f"Step Rehash ran {more} of {len(loop.evaluations)} evaluations in full that the plan skips: "
                f"{'; '.join(reasons)}; to skip them, too, calibrate on calls that change as this one did"
            )
        else:
            self._said = ""

    def say(self, line: str) -> None:
        """Warn, unless the call before gave reason for the same."""
        if line != self._said:
            log.warning("%s", line)
        self._said = line

    def clock(self) -> float:
        """The time by which loops and evaluations are measured."""
        return time.perf_counter()

    def kept(self) -> list[torch.Tensor]:
        """The features that the loop at hand keeps."""
        loops = [loop for loop in CURRENT.get() if loop.owner is self]
        return [t for loop in loops for t in (*loop.held, *(loop.recorder.held if loop.recorder else ()))]

    # A call of the denoiser

    def evaluate(self, component: CompiledComponent, loop: DenoisingLoop, call: Call) -> Any:
        """Run the denoiser in full or from the cut, as the plan of the loop says."""
        call = call.keyed(component.key_of(call))
        loop.begins(kind_of(component, loop, guidance_of(self.state.pipe), call))
        if not loop.resolved:
            began = time.perf_counter()
            self._resolve(component, loop, call)
            call = call.keyed(component.key_of(call))  # what the call decides by may be known only now
            loop.busy += time.perf_counter() - began
        if loop.recorder is not None:
            began = time.perf_counter()
            same = loop.setting is not None and self._mark(component, call) == loop.setting.structure
            result = record(component, loop, call, self._now, same=same)
            if self.script is not None:
                self.script.write(loop, call, result)
            loop.busy += time.perf_counter() - began
            return result
        plan, step, asked = loop.plan, loop.step, loop.next_call()
        if self.script is not None and (known := self.script.read(loop, call)) is not None:
            loop.note(Evaluation(step, asked.branch, None, "the same as in the full run"))
            return known
        began, planning, error = self._now(call.device), component.planning_seconds, None
        if plan is not None and asked.kept and self._mark(component, call) != plan.structure:
            asked = NextCall(asked.branch, None, "the graph is another than that of the plan", kept=False)
        if plan is None or not asked.kept or (self.script is not None and loop.keeps_nothing):
            result = component.run_whole(call)
        elif asked.prediction is None:
            part = component.part_for(parts_of(plan)[0], call)
            result, features = component.run_part(part, call.flat, loop.held, call.device)
            error = loop.keep(asked.branch, tuple(features))
        else:
            part = component.part_for(parts_of(plan)[1], call)
            given = loop.predict(asked.branch, asked.prediction)
            result = component.run_part(part, [*call.flat, *given], loop.held, call.device)
        planning = component.planning_seconds - planning
        loop.busy += planning
        seconds = self._now(call.device) - began - planning
        loop.note(Evaluation(step, asked.branch, asked.prediction, asked.reason, error, 0, seconds))
        return result

    def _mark(self, component: CompiledComponent, call: Call) -> str:
        """The structure of the denoiser's graph in a call: positions of cuts belong to it."""
        assert call.key is not None
        if call.key not in self._marks:
            self._marks[call.key] = structure(component.whole_program(call).graph_module.graph)
        return self._marks[call.key]

    def _resolve(self, component: CompiledComponent, loop: DenoisingLoop, call: Call) -> None:
        """Find the plan of a loop, now that the denoiser's graph is known.

        Raises:
            StalePlan: the plan that was given is for another model, scheduler or number of steps.
            BadInput: the loop is of another setting than the lessons of a file.
        """
        if loop.step == 0:
            loop.placed(next((leaf for name, leaf in named_inputs(component, call) if name == TIME), None))
        assert loop.setting is not None
        loop.resolved, loop.why = True, ""
        exact = self.mode is Mode.EXACT
        if exact and self.expected is None:
            return
        if self._knows_nothing:
            loop.why = NO_CALLS
            self.say(f"Step Rehash skips nothing: {loop.why}")
            return
        mark, size = self._mark(component, call), _size_of(call)
        loop.setting = setting = replace(loop.setting, structure=mark, size=size)
        if self.expected is not None:
            self.expected.check(setting)
        if exact:
            return
        self._choose_plan(loop, setting, partial(self._recorder, component, call))
        if loop.why:
            self.say(f"Step Rehash skips nothing: {loop.why}")

    def _choose_plan(self, loop: DenoisingLoop, setting: Setting, recorder: Callable[[], LoopRecorder]) -> None:
        """What a loop of a setting runs by: the plan that was given, or one that was learned; or it is learned from.

        Raises:
            StalePlan: the plan that was given is for another model, scheduler or number of steps.
        """
        if self.given is not None:
            self.given.check(
                pipeline=self.state.name,
                structure=setting.structure,
                scheduler=setting.scheduler,
                evaluations=len(setting.times),
            )
            loop.why = "" if self.request.accept_worse else self.given.unmeasured(setting)
            loop.plan = None if loop.why else self.given
        elif self.mode is Mode.LEARNING:
            loop.recorder = recorder()
        elif setting in self.plans:
            loop.plan = self.plans[setting]
        elif setting in self.unskippable:
            loop.why = self.unskippable[setting]
        elif not self.request.accept_worse:
            loop.why = self._unchecked(setting)
        elif (plan := self._adapted(setting, loop)) is not None:
            loop.plan = plan
        elif setting in self.unskippable:
            loop.why = self.unskippable[setting]
        else:
            log.warning("Step Rehash: this call runs in full and is learned from; later ones will skip")
            loop.recorder = recorder()

    def _recorder(self, component: CompiledComponent, call: Call) -> LoopRecorder:
        """What watches the features of a few cuts; where those are is worked out once for a graph.

        Raises:
            BadInput: there is no legal cut.
        """
        assert call.key is not None
        if call.key not in self._cuts:
            self._cuts[call.key] = cuts_of(component, component.whole_program(call))
        return LoopRecorder(self._cuts[call.key], self.turn)

    @property
    def _knows_nothing(self) -> bool:
        """Whether no plan was given, asked for by calls, or may be taken from a guess."""
        asked = self.given or self.request.calls or self.request.accept_worse
        return self.mode is Mode.PLANNED and not (asked or self.plans)

    def _unchecked(self, setting: Setting) -> str:
        """Why a loop runs in full for which no plan was checked, and what to do."""
        known = next((s for s in self.plans if s.structure == setting.structure), next(iter(self.plans), None))
        if known is None:
            return NO_CALLS
        return f"the plan was checked in a loop {known.difference(setting)}; {CHECK}"

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
        if self.timed or (self.last is not None and self.last.recorder is not None):
            synchronize(device)
        return time.perf_counter()

    # Lessons and plans

    def _learn(self, loop: DenoisingLoop) -> None:
        """Keep what a finished loop showed, and plan from it where nothing more is to come."""
        setting = loop.setting
        assert setting is not None
        if why := nothing_learned(loop, self.component, self.state.name):
            log.warning("Step Rehash learned nothing: %s", why)
            if loop.final is None or loop.step >= len(setting.times):  # not interrupted: the next one will be like it
                self.unskippable[setting] = why
            return
        self.lessons[setting] = learn_from(loop, self.lessons.get(setting, []))
        if self.mode is Mode.LEARNING:
            return
        try:
            self.plans[setting] = self.plan_for(setting)
        except BadInput as error:  # the call is done: its frames are not lost for it
            self.unskippable[setting] = str(error)
            log.warning("Step Rehash will skip nothing: %s", error)

    def subject(self, setting: Setting) -> PlanInputs:
        """What plans are made for."""
        branches = max(len(x.grams) for rows in self.lessons[setting] for x in rows.lessons)
        return PlanInputs(self.state.name, self.component, setting.structure, setting.scheduler, branches)

    def candidates(self, setting: Setting) -> list[RehashPlan]:
        """Every plan that is the best of its cut and number of full evaluations."""
        request, subject, lessons = self.request, self.subject(setting), self.lessons[setting]
        if request.strategy != "planned":
            return by_rule(request.strategy, subject, lessons)
        return planned(subject, lessons, request.predictor, request.order)

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
        evaluations = tuple(loop.evaluations) if loop else ()
        why = loop.why if loop is not None else "" if plan else "; ".join(self.unskippable.values())
        return RehashReport(self.state.name, self.component, plan, evaluations, why)


def _size_of(call: Call) -> tuple[int, ...]:
    """The shape of the first tensor the denoiser is given, which is what it denoises, without its batch."""
    first = next((x for x in pytree.tree_leaves(call.inputs) if isinstance(x, torch.Tensor)), None)
    return () if first is None else tuple(first.shape[1:])
