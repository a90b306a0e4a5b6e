"""From a captured program to a plan, and from a plan to a rewritten program."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sicompiler.cache.known import KnownPlans, program_digest
from sicompiler.cache.store import Store
from sicompiler.capture import Program
from sicompiler.collector import paused_gc
from sicompiler.compiler.analysis import Analysis, analyze
from sicompiler.compiler.analyzed_graph import AnalyzedGraph
from sicompiler.compiler.basis import basis
from sicompiler.compiler.offload import OffloadAssignment, assign_offload
from sicompiler.compiler.plan_fields import offload_fields, region_plan
from sicompiler.compiler.restore import Restored, check_prediction, restore
from sicompiler.compiler.search import Progress, Search
from sicompiler.compiler.searches import KnownSearches, Searches
from sicompiler.device import Machine, device_kind
from sicompiler.errors import BadInput, OverBudget
from sicompiler.facts.modules import describe
from sicompiler.machines import machine_of
from sicompiler.operators import code_of_users
from sicompiler.passes.loop import outline_loops
from sicompiler.passes.manager import Observer, run_stage
from sicompiler.passes.outer import wrap_outer
from sicompiler.plan import Plan
from sicompiler.planners.candidates import Regions
from sicompiler.planners.registry import DP, ChosenPlanner, Solver, chosen_planner
from sicompiler.units import budget_hint, format_bytes

Offload = Literal["none", "auto"]  # keep everything on the device; or spill and stream what a budget asks for
AnyPlanner = str | Solver | ChosenPlanner  # as a user says it, or as it was looked up before
UNBOUND = {"fingerprint": "", "torch_version": ""}  # of plans that are for their numbers
TRIES = (1.0, 0.5, 0.0)  # how far from the floor to the budget activations may go, where weights want room too


@dataclass(frozen=True)
class Planner:
    """Everything known about one model at one input shape; gives a plan for any budget.

    Attributes:
        model: its name.
        source: what is searched, as far as budgets ask for it.
        weights_bytes: weights, all of them resident.
        dtype: of the weights.
        phase: what part of a pipeline the call is: "denoise", "decode", ...
        bound: whether its plans can be carried out; those of regions known from another size are for their numbers.
        captured: what is planned, as it was captured; None for the numbers of another size.
        known: answers from earlier, in this process or another; what is not there is worked out and added.
        call: what tells the call from others, the code of the model included; "" where that means nothing elsewhere.
    """

    model: str
    source: Searches | KnownSearches
    weights_bytes: int
    dtype: str
    phase: str = "denoise"
    bound: bool = True
    captured: Program | None = None
    known: KnownPlans | None = None
    call: str = ""

    @property
    def program(self) -> Program:
        """What is planned, as it was captured."""
        return self.graph.program if self.captured is None else self.captured

    @property
    def graph(self) -> AnalyzedGraph:
        """The legal graph."""
        return self.source.graph

    @property
    def analysis(self) -> Analysis:
        """What plans are carried out on."""
        assert isinstance(self.source, Searches), "a graph of numbers alone can't be rewritten"
        return self.source.analysis

    @property
    def searches(self) -> tuple[Search, ...]:
        """The graph itself, and the graphs of possible outer loops and with large values rematerialized."""
        return self.source.on_device

    @functools.cached_property
    def unsliced_bytes(self) -> int:
        """Peak of the unsliced schedule, weights included."""
        return self._numbers("unsliced", lambda: (self.graph.line.peak_bytes + self.weights_bytes, ""))[0]

    def untouched_bytes(self, make: Callable[[], int | None] | None = None) -> int | None:
        """What the model peaks at as it is; None where that is not known. Another process may have looked.

        Args:
            make: looks, where nobody has.
        """
        if self.known is None or not self.call:
            return None if make is None else make()
        return self.known.bytes_if_known(f"untouched {self.call}", make)

    def floor(self, offload: Offload = "none") -> tuple[int, str]:
        """The smallest budget of any plan, weights included, and the operator that sets it."""
        return self._numbers(f"floor {offload}", lambda: self._find_floor(offload))

    def _numbers(self, question: str, make: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        return make() if self.known is None else self.known.numbers(question, make)

    def _find_floor(self, offload: Offload, *, planned: bool = False) -> tuple[int, str]:
        """The floor; once every graph was tried for a plan, of those searched to their end: no other fits."""
        searches = self._floor_searches(offload)
        searches = tuple(s for s in searches if s.sought.is_complete or not planned)
        search = min(searches, key=lambda s: s.lowest.peak_bytes + self._beside(s))
        culprit = search.graph.facts.nodes[search.lowest.culprit]
        return search.lowest.peak_bytes + self._beside(search), describe(culprit)

    def _floor_searches(self, offload: Offload) -> tuple[Search, ...]:
        return (*self.searches, *self.source.offloaded) if offload == "auto" else self.searches

    def floor_of(self, plan: Plan) -> Callable[[], tuple[int, str]]:
        """The floor beside a plan, for later: searched for when it is asked for, if this planner is still there.

        What is known of a graph is larger than the graph, so nothing that runs keeps it; without, a plan's own peak is
        all that is known.
        """
        planner = weakref.ref(self)

        def floor() -> tuple[int, str]:
            known = planner()
            if known is None:
                return plan.predicted_peak_bytes, ""
            return known.floor("auto" if plan.uses_offload else "none")

        return floor

    def _beside(self, search: Search) -> int:
        """What is on the device beside the activations of a search: weights that stay, what an outer loop holds."""
        return self.weights_bytes - search.streamed_bytes + search.graph.extra_bytes

    def plan(self, budget_bytes: int, *, planner: AnyPlanner = DP, offload: Offload = "none") -> Plan:
        """The fastest plan within a budget.

        Args:
            budget_bytes: weights, inputs, activations and workspace together.
            planner: which search to use, see `planners.registry`.
            offload: "auto" allows to spill values and to stream weights, if no plan fits otherwise.

        Raises:
            BadInput: there is no such planner, what it returns is no plan within the budget, or it finds none where
                there is one.
            OverBudget: even the plan with the lowest peak is above the budget.
        """
        plan = self.plan_within(budget_bytes, planner=planner, offload=offload)
        if plan is None:
            self.refuse_unsolved(budget_bytes, planner, offload)
            raise self._refusal(budget_bytes, offload)
        return plan

    def refuse_unsolved(self, budget_bytes: int, planner: AnyPlanner, offload: Offload) -> None:
        """Refuse a budget that a planner finds no plan for, though there is one.

        Raises:
            BadInput: another planner finds one; the planner that looks at all candidates is named.
        """
        floor_bytes, _ = self.floor(offload)
        if floor_bytes <= budget_bytes:
            raise BadInput(
                f"planner {chosen_planner(planner).name!r} finds no plan of {self.model} within "
                f"{format_bytes(budget_bytes)}, though there is one: the floor is {format_bytes(floor_bytes)}. "
                "Use planner='dp', or give more"
            )

    def plan_within(self, budget_bytes: int, *, planner: AnyPlanner = DP, offload: Offload = "none") -> Plan | None:
        """The fastest plan within a budget; None where none fits, for those who then try a larger one.

        A refusal names the floor, and that takes all candidates; whether any plan fits takes those up to the operator
        that none gets past.

        Args:
            budget_bytes: weights, inputs, activations and workspace together.
            planner: which search to use, see `planners.registry`.
            offload: "auto" allows to spill values and to stream weights, if no plan fits otherwise.

        Raises:
            BadInput: there is no such planner, or what it returns is no plan within the budget.
        """
        chosen = chosen_planner(planner)
        make = paused_gc()(functools.partial(self._find_plan, budget_bytes, chosen, offload))
        if self.known is None:
            return make()
        of_user = () if chosen.code is None else (chosen.code,)
        return self.known.plan(f"{budget_bytes} {chosen.name} {offload}", make, of_user)

    def _refusal(self, budget_bytes: int, offload: Offload) -> OverBudget:
        """The error of a budget that no plan fits."""
        (floor_bytes, culprit), kind = self.floor(offload), device_kind(self.graph.facts.device_type)
        parts = (
            "with offloading"
            if offload == "auto" and kind.can_offload
            else f"{format_bytes(self.weights_bytes)} of weights + "
            f"{format_bytes(floor_bytes - self.weights_bytes)} of activations; {kind.no_offload}"
        )
        return OverBudget(
            f"{self.model} does not fit {format_bytes(budget_bytes)}: the floor is {format_bytes(floor_bytes)} "
            f"({parts}), set by {culprit}. The nearest budget that works is {budget_hint(floor_bytes)}",
            budget_bytes=budget_bytes,
            floor_bytes=floor_bytes,
            culprit=culprit,
        )

    def rewrite(self, plan: Plan) -> Program:
        """Carry a plan of this planner out."""
        if self.known is None:
            return rewrite(self.analysis, plan)
        return self.known.rewritten(self.program, plan, lambda: rewrite(self.analysis, plan))

    def _find_plan(self, budget_bytes: int, planner: ChosenPlanner, offload: Offload) -> Plan | None:
        began, before = time.perf_counter(), dict(self.source.timings)
        found = self._on_device(budget_bytes, planner.solve)
        if found is None and offload == "auto":
            found = self._with_offloading(budget_bytes, planner.solve)
        if found is None:
            return None
        floor_bytes, culprit = self._known_floor(found[1], budget_bytes)
        search, assignment = found
        solution, weights = assignment.solution, self.weights_bytes - assignment.streamed_bytes
        view = search.graph.view.offloading(assignment.offloaded) if self.bound else None
        marks: dict[str, Any] = {**basis(self.graph, search.graph)} if self.bound else UNBOUND
        spent = {stage: seconds - before.get(stage, 0.0) for stage, seconds in self.source.timings.items()}
        timings = {**self.source.timings, "choose": time.perf_counter() - began - sum(spent.values())}
        return Plan(
            model=self.model,
            **marks,
            device=search.graph.facts.device_type,
            dtype=self.dtype,
            budget_bytes=budget_bytes,
            weights_bytes=weights,
            unsliced_peak_bytes=self.unsliced_bytes,
            predicted_peak_bytes=solution.peak_bytes + search.graph.extra_bytes + weights,
            floor_bytes=floor_bytes,
            floor_operator=culprit,
            outer=search.outer.loop if search.outer else None,
            regions=tuple(region_plan(search, choice, view) for choice in solution.choices),
            seconds=solution.seconds * search.repeats,
            timings=timings,
            held_bytes=search.graph.extra_bytes,
            phase=self.phase,
            planner=planner.name,
            rematerialized_bytes=search.rematerialized_bytes,
            timed_by=search.evaluator.machine.source,
            **offload_fields(search, assignment),
        )

    def _known_floor(self, assignment: OffloadAssignment, budget_bytes: int) -> tuple[int | None, str]:
        """The floor beside a plan as far as it was needed for it: with offloading where the plan uses that.

        None where it would take a search that was left off: by another budget while this one did not try, or because
        fewer candidates decide about this one.
        """
        if not self.source.all_on_device:
            return None, ""
        offloaded: Offload = "auto" if assignment.offloaded else "none"
        complete = [search.sought.is_complete for search in self._floor_searches(offloaded)]
        if all(complete) or (
            any(complete) and self.unsliced_bytes > budget_bytes and not self._may_be_lower(budget_bytes)
        ):
            return self._numbers(f"floor {offloaded}", lambda: self._find_floor(offloaded, planned=True))
        return None, ""

    def _may_be_lower(self, budget_bytes: int) -> bool:
        """Whether some graph fits a budget that it was tried for, of which not all is known."""
        rooms = [(s, budget_bytes - self._beside(s)) for s in self.searches if not s.sought.is_complete]
        return any(search.within(room).fits(room) for search, room in rooms)

    def _on_device(self, budget_bytes: int, solve: Solver) -> tuple[Search, OffloadAssignment] | None:
        """The fastest plan with everything on the device; where the unsliced graph fits, without outer loops.

        What is searched then can only save time: nothing is, if there is little to be saved.
        """
        if self.unsliced_bytes > budget_bytes:
            searches = self.searches
        else:
            searches = (self.source.whole if self.source.unsliced.may_save_time else self.source.unsliced,)
        found = [
            (s, OffloadAssignment(solution, frozenset(), 0, (), 0))
            for s in searches
            for room in [budget_bytes - self._beside(s)]
            for sought in [s.within(room)]
            for solution in [solve(sought.problem, room) if sought.fits(room) else None]
            if solution is not None
        ]
        return min(found, key=lambda row: row[1].solution.seconds * row[0].repeats, default=None)

    def _with_offloading(self, budget_bytes: int, solve: Solver) -> tuple[Search, OffloadAssignment] | None:
        """The fastest plan found that spills and streams: activations given more room, or weights."""
        found = []
        for search in self.source.offloaded:
            room = budget_bytes - self._beside(search)
            if not search.sought.fits(room):
                continue
            lowest = search.lowest.peak_bytes
            for share in TRIES:
                solution = solve(search.problem, lowest + int(share * (room - lowest)))
                if solution is not None:
                    found.append((search, assign_offload(search, solution, room)))
        return min(found, key=lambda row: row[1].solution.seconds * row[0].repeats, default=None)


def make_planner(  # noqa: PLR0913  # what is known of the model, for people and for the cache, beside the program
    program: Program,
    *,
    model: str,
    weights_bytes: int,
    dtype: str,
    device_type: str,
    machine: Machine | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    timings: dict[str, float] | None = None,
    phase: str = "denoise",
    store: Store | None = None,
    digest: str | None = None,
    call: str = "",
    regions: Regions | None = None,
) -> Planner:
    """Analyse a captured program; what is searched in it depends on the budgets that are asked for.

    Args:
        program: from `capture`.
        model: its name, for people.
        weights_bytes: resident weights.
        dtype: of the weights, for people.
        device_type: whose allocator and kernels to count with: a row of `sicompiler.device`.
        machine: cost model of the device; a default by device type.
        progress: told about long work.
        observer: shown every stage.
        timings: seconds spent before (on the capture).
        phase: what part of a pipeline the call is.
        store: where answers of other processes lie. Then even the analysis is only made when something is asked that
            is not known.
        digest: of the program, where that is known.
        call: what tells the call from others, the code of the model included.
        regions: what grew in programs that are like this one; it is added to.
    """
    machine = machine or machine_of(device_type)
    known = None
    if store is not None:
        digest = digest or program_digest(program)
        told = (model, weights_bytes, dtype, device_type, machine, phase)
        known = None if digest is None else KnownPlans.of(store, digest, *told, code=code_of_users)
    analyse = functools.partial(analyze, program, device_type, observer=observer)
    source = Searches(analyse, machine, progress, dict(timings or {}), regions)
    if known is None:
        _ = source.analysis
    return Planner(model, source, weights_bytes, dtype, phase, captured=program, known=known, call=call)


def rewrite(
    source: Analysis | Program, plan: Plan, *, given: bool = False, observer: Observer | None = None
) -> Program:
    """Carry a plan out.

    Args:
        source: what the plan was made from (`Planner.analysis`); or a captured program, which is analysed first.
        plan: what to do.
        given: the plan comes from elsewhere (a file), so what it predicts is worked out again for this machine.
        observer: shown every stage.

    Raises:
        StalePlan: the plan was made for another graph, by other rules, passes or thresholds, or for another machine.
    """
    analysis = source if isinstance(source, Analysis) else analyze(source, plan.device, observer=observer)
    restored = restore(analysis, plan)
    if given:
        check_prediction(restored, plan)
    rewritten = _outline(restored, plan)
    if restored.outer is not None:
        legal = analysis.legal
        rewritten = wrap_outer(legal.program, legal.view, restored.outer.region, restored.outer.inner, rewritten)
    return run_stage("rewritten", rewritten, observer=observer)


def _outline(restored: Restored, plan: Plan) -> Program:
    return outline_loops(restored.graph.program, restored.view, restored.regions, dict(plan.prefetched))
