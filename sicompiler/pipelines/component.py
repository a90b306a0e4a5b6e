"""One method of one component of a pipeline: planned within what the rest of the pipeline leaves of the budget."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from sicompiler.capture import Program, weights_bytes
from sicompiler.capture.results import open_inputs, tensors_of
from sicompiler.capture.tiling import SWITCH, runs_only_tiled
from sicompiler.compiled_module import HOOK
from sicompiler.compiler.planner import Offload, Planner
from sicompiler.compiler.prepare import analyse
from sicompiler.compiler.reserve import lowest_reserving, plan_within_reserving
from sicompiler.errors import CaptureError, OverBudget
from sicompiler.passes.manager import run_stage
from sicompiler.pipelines.analyses import Analyses
from sicompiler.pipelines.records import Record, Shortage
from sicompiler.pipelines.rehearsal import RehearsalStopped
from sicompiler.pipelines.roles import check_component
from sicompiler.pipelines.subgraph import GraphPart
from sicompiler.pipelines.tenants import SharedState, Tenant
from sicompiler.pipelines.untouched import UntouchedCall, check_inputs, key_of, untouched_call
from sicompiler.pipelines.weights import storages, weights_of
from sicompiler.plan import Plan
from sicompiler.reports.phases import PhaseRow
from sicompiler.runtime.call import Call
from sicompiler.runtime.compiled import Executable, check_inference
from sicompiler.runtime.measure import observe_peak
from sicompiler.runtime.placement import place, restore, streams
from sicompiler.turns import executing
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")


def _is_tight(plan: Plan) -> bool:
    """Whether a plan does anything for its budget that costs time."""
    return bool(plan.regions or plan.outer or plan.rematerialized or plan.uses_offload)


class CompiledComponent(SharedState):
    """A taken-over method of a component, for all pipelines that share it: its plans are made once.

    Args:
        model: the component.
        tenant: the first pipeline. Values are spilled and weights streamed, where it allows that, once all idle
            components have been moved away.
    """

    def __init__(self, model: torch.nn.Module, tenant: Tenant) -> None:
        super().__init__(model, tenant)
        self.untouched_calls: dict[Hashable, UntouchedCall] = {}  # those that can't be captured
        self.beside: dict[int, frozenset[str]] = {}  # by id of a plan: what else was on the device when it was made
        self.programs: dict[Hashable, Program] = {}  # clean and whole, of which parts are made
        self.parts: dict[tuple[Hashable, GraphPart], Executable] = {}  # by call
        self.analyses = Analyses()
        self.planning_seconds = 0.0  # spent so far, in calls that were timed otherwise
        self._room: dict[tuple[Hashable, GraphPart], int] = {}  # bytes of features beside each part, at each shape

    @property
    def needed_bytes(self) -> int:
        """The most that a call so far takes of the budget."""
        planned = [compiled.plan.needed_bytes for compiled in self.compiled.values()]
        return max([*planned, *(known.needed_bytes for known in self.untouched_calls.values())], default=0)

    @property
    def alive(self) -> bool:
        """Whether the component still exists: a pipeline may have dropped it, as it does when it unloads an adapter."""
        return self._model() is not None

    def agree(self) -> None:
        """Have the budget that suits all pipelines; plans that a smaller one made slower than need be are dropped."""
        before, self.budget_bytes = self.budget_bytes, self.tenants.budget_bytes
        self.offload = self.tenants.offload
        if self.planner != self.pipeline.planner:
            self.planner, self.compiled, self.parts = self.pipeline.planner, {}, {}
        if self.budget_bytes > before:
            self.compiled = {call: compiled for call, compiled in self.compiled.items() if not _is_tight(compiled.plan)}
            self.parts = {call: compiled for call, compiled in self.parts.items() if not _is_tight(compiled.plan)}

    @property
    def may_run_untouched(self) -> bool:
        """Whether it need not be captured: an encoder, or what only runs tiled, and then with tiling on."""
        return self.role.optional or (
            getattr(self.model, SWITCH, False) is True and bool(runs_only_tiled(self.model, self.method))
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the component by its plan, within what is left of the budget now."""
        call = Call.of(self.model, args, kwargs)
        with self.tenants.serving(None) as tenant:
            if tenant.pipeline.resting:
                return self._run_own(call)
            check_inference(call)
            tenant.pipeline.check()
            with self.turn.taken(), executing():
                self.agree()
                self.progress = tenant.progress
                return self._run_planned(call)

    def _run_own(self, call: Call) -> Any:
        """Run the component's own method, for a pipeline that runs as it would without us."""
        with self.turn.taken(), executing():
            self.pipeline.residency.bring(self.model)
            restore(self.model, call.device)
            return self.own_method()(*call.args, **call.kwargs)

    def _run_planned(self, call: Call) -> Any:
        check_component(self.role.label, self.model, planned=self.pipeline.plans(self.role.component))
        hook = self.model.__dict__.get(HOOK)
        if self.method != "forward" and hook is not None:
            hook.pre_forward(self.model)  # diffusers' own decode and encode begin by this; forward has it in front
        self.pipeline.bring(self, call.device)
        self.reserved = self.pipeline.reserved(self, call.inputs, call.device)
        rehash = self.pipeline.rehash
        loop = rehash.loop_of(self) if rehash is not None else None
        if rehash is not None and loop is not None:
            return rehash.evaluate(self, loop, call)
        return self.run_whole(call)

    def run_whole(self, call: Call) -> Any:
        """Run by the plan of the whole graph, or untouched where it can't be captured and need not."""
        opened = open_inputs((tuple(call.args), dict(call.kwargs)))
        shape = key_of(opened, weights_bytes(self.model)) if self.may_run_untouched else ()
        if shape not in self.untouched_calls:
            try:
                check_inputs(opened)
                compiled = self.compiled_for(call)
            except CaptureError as error:
                if not self.may_run_untouched:
                    raise
                self._runs_untouched(shape, str(error).splitlines()[0], call)
            else:
                place(self.model, compiled.plan.streamed, call.device)
                return self._run(compiled, lambda: compiled.run(self.model, call.flat), call.inputs, call.device)
        return self._run_untouched(self.untouched_calls[shape], call)

    def _runs_untouched(self, shape: Hashable, why: str, call: Call) -> None:
        """Note that calls of a shape run untouched, and what is known of them."""
        if all(known.reason != why for known in self.untouched_calls.values()):
            log.warning("%s runs untouched, as it can't be captured: %s", self.role.label, why)
        with self.untouched() as own:
            room_bytes = self.budget_bytes - self.reserved.total_bytes
            self.untouched_calls[shape] = untouched_call(
                self.model, own, *call.inputs, reason=why, room_bytes=room_bytes
            )

    def _run_untouched(self, known: UntouchedCall, call: Call) -> Any:
        """Run untouched, once there is room for all that is known to be needed.

        Raises:
            OverBudget: there is not, whatever is moved away. The call has not run then; or, where more is needed than
                could be told, was stopped before it passed the budget.
        """
        while True:
            while known.needed_bytes + self._beside_bytes(known) > self.budget_bytes:
                if not self._make_room(call):
                    raise self._over_budget(Shortage(known.floor_bytes, known.culprit, known.reason))
            restore(self.model, call.device)
            limit_bytes = self.budget_bytes - self._beside_bytes(known) - known.weights_bytes - known.inputs_bytes
            with self.untouched() as own, torch.no_grad():
                try:
                    with known.limited(limit_bytes, self.model, call.inputs):
                        return self._run(known, lambda: own(*call.args, **call.kwargs), call.inputs, call.device)
                except RehearsalStopped as stop:
                    known.stopped(stop)  # more is needed than was known: with room for that it may run

    def _beside_bytes(self, known: UntouchedCall) -> int:
        """What the rest of the pipeline takes beside untouched calls: measured ones have what nobody counts in them."""
        return self.reserved.total_bytes - (self.reserved.margin_bytes if known.measured_bytes is not None else 0)

    def whole_program(self, call: Call) -> Program:
        """The clean graph for the shapes of a call, of which parts are made."""
        key = call.key or self.key_of(call)
        if key not in self.programs:
            restore(self.model, call.device)  # a trace reads where the weights are
            with self.untouched():
                program = self.captured(call)
            key = self.learn(program, call)
            self.programs[key] = run_stage("clean", program)
        return self.programs[key]

    def part_for(self, part: GraphPart, call: Call) -> Executable:
        """A part of the graph, planned within what is left of the budget beside the features that are held.

        Args:
            part: which.
            call: of the whole denoiser.

        Raises:
            OverBudget: no plan fits beside them.
        """
        call = call.keyed(call.key or self.key_of(call))
        if call.key not in self.programs:
            self.whole_program(call)
            call = call.keyed(self.key_of(call))  # what it decides by is known now, and part of the key
        key = (
            call.key,
            part,
        )  # with what is held beside it: a plan that leaves room for much is slow where little is held
        found = self.parts.get(key)
        if key not in self._room:
            nodes = list(self.whole_program(call).graph_module.graph.nodes)
            values = [nodes[p].meta["val"] for p in part.cut]
            self._room[key] = (
                part.snapshots * sum(v.nbytes for v in values) + part.scratch_bytes(values) + part.beside_bytes
            )
        self.reserved = replace(self.reserved, snapshot_bytes=self._room[key])
        if found is None or not self.still_fits(found, call):
            with self._planning():
                planner = self.planners.get(key) or self._analysed(part, call)
                plan = self.choose(planner, call)
                self.keep_planner(key, planner)
                found = self.parts[key] = Executable(planner.rewrite(plan), plan, planner.floor_of(plan))
        return found

    @property
    def room_bytes(self) -> int:
        """How much of the budget the rest of the pipeline leaves."""
        return self.budget_bytes - self.reserved.total_bytes

    def compile(self, call: Call) -> Executable:
        """Capture, plan and rewrite for the shapes of a call."""
        with self._planning():
            return super().compile(call)

    def _prepared(self, call: Call) -> Planner:
        """Analyse the method for the shapes of a call; what parts were made of is not captured again."""
        program = self.programs.get(self.key_of(call))
        if program is None:
            return super()._prepared(call)
        return self._analysis_of(program)

    @contextlib.contextmanager
    def _planning(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.planning_seconds += time.perf_counter() - began

    def _analysed(self, part: GraphPart, call: Call) -> Planner:
        """The planner of a part; parts that differ in what is held beside them have the same."""
        return self.analyses.planner(
            (call.key, part.kind, part.cut),
            lambda: self._analysis_of(part.of(self.whole_program(call))),
        )

    def _analysis_of(self, program: Program) -> Planner:
        regions = self.analyses.regions
        return analyse(
            self.model, program, method=self.method, progress=self.progress, store=self.store, regions=regions
        )

    def forget_parts(self, but: Collection[GraphPart]) -> None:
        """Let go of all parts but some, and of what they were planned from."""
        self.analyses.forget()
        gone = {id(compiled) for key, compiled in self.parts.items() if key[1] not in but}
        self.parts = {key: compiled for key, compiled in self.parts.items() if id(compiled) not in gone}
        self.records = [record for record in self.records if id(record.ran) not in gone]

    def run_part(
        self, compiled: Executable, inputs: Sequence[Any], kept: Sequence[torch.Tensor], device: torch.device
    ) -> Any:
        """Run a part of the graph.

        Args:
            compiled: the part.
            inputs: flat.
            kept: features that are held meanwhile.
            device: where.
        """
        self.place_weights(compiled, device)
        return self._run(compiled, lambda: compiled.run(self.model, inputs), (inputs, kept), device)

    def place_weights(self, compiled: Executable, device: torch.device) -> None:
        """Move weights to where a plan wants them."""
        place(self.model, compiled.plan.streamed, device)

    def still_fits(self, compiled: Executable, call: Call) -> bool:
        """Whether a plan made before leaves room for what the pipeline holds by now.

        Components that were away when it was made may have come back since: they go again.
        """
        beside = self.beside.get(id(compiled.plan), frozenset())
        while compiled.plan.needed_bytes + self.reserved.total_bytes > self.budget_bytes:
            if not self._make_room(call, beside):
                return False
        return True

    def choose(self, planner: Planner, call: Call) -> Plan:
        """The fastest plan within what the rest of the pipeline leaves.

        Idle components go first; only then values and weights of this one are offloaded.

        Raises:
            OverBudget: no plan fits, whatever is moved away.
        """
        offload: Offload = "none"
        while True:
            room_bytes = self.room_bytes
            plan = plan_within_reserving(planner, room_bytes, chooser=self.planner, offload=offload)
            if plan is not None:
                self.beside[id(plan)] = frozenset(name for name, _ in self.reserved.weights)
                return plan
            if self._make_room(call):
                continue
            if offload == self.offload:
                planner.refuse_unsolved(room_bytes, self.planner, offload)
                lowest = lowest_reserving(planner, offload)
                raise self._over_budget(Shortage(lowest.needed_bytes, planner.floor(offload)[1]))
            offload = self.offload

    def _make_room(self, call: Call, keep: frozenset[str] = frozenset()) -> bool:
        if not self.pipeline.make_room(self, call.device, keep):
            return False
        self.pipeline.residency.bring(self.model)  # another thread may have moved it away while this one waited
        snapshot_bytes = self.reserved.snapshot_bytes
        self.reserved = self.pipeline.reserved(self, call.inputs, call.device)
        self.reserved = replace(self.reserved, snapshot_bytes=snapshot_bytes)
        return True

    def _over_budget(self, shortage: Shortage) -> OverBudget:
        known, waiting = self.pipeline.beside(self)
        return shortage.error(
            self.pipeline.name, self.role, self.budget_bytes, self.reserved, known=known, waiting=waiting
        )

    def _run(self, ran: Executable | UntouchedCall, run: Callable[[], Any], inputs: Any, device: torch.device) -> Any:
        """Run, keep the books, and measure where that is asked for; an untouched encoder is measured always."""
        record = next((r for r in self.records if r.ran is ran), None)
        if record is None:
            record = Record(ran)
            self.records.append(record)
        record.calls += 1
        own_bytes = self.reserved.own_bytes
        if own_bytes is None or streams(self.model):  # the plan may have moved some since they were added up
            own_bytes = sum(weights_of(self.model, device).values())
        record.own_weights_bytes = own_bytes
        if self.reserved.total_bytes >= record.reserved.total_bytes:
            record.reserved = self.reserved
        untouched = isinstance(ran, UntouchedCall)
        if not untouched and not self.pipeline.measure_calls:
            return run()
        own = sum({**weights_of(self.model, device), **storages(tensors_of(inputs), device)}.values())
        beside = self.reserved.total_bytes
        beside -= self.reserved.margin_bytes + self.reserved.snapshot_bytes  # what is kept is among the inputs
        with observe_peak(device) as peak:
            result = run()
        record.not_measured = peak.not_measured
        if peak.not_measured:
            return result
        record.measured_bytes = max(record.measured_bytes or 0, own + beside + peak.bytes)
        if isinstance(ran, UntouchedCall):
            ran.measured_bytes = max(ran.measured_bytes or 0, peak.bytes)
            if own + beside + peak.bytes > self.budget_bytes:
                log.warning(
                    "%s, which runs untouched, took the pipeline to %s, above its budget of %s, which nothing told "
                    "before; the next call like it is OverBudget before it runs",
                    self.role.label,
                    format_bytes(own + beside + peak.bytes),
                    format_bytes(self.budget_bytes),
                )
        return result

    def rows(self, tenant: Tenant | None = None) -> list[PhaseRow]:
        """One row for each plan in use, and for each shape of untouched calls.

        Args:
            tenant: the pipeline whose calls are told.
        """
        with self.tenants.serving(tenant):
            return self._rows()

    def _rows(self) -> list[PhaseRow]:
        current = [*self.compiled.values(), *self.parts.values(), *self.untouched_calls.values()]
        kinds = {id(compiled): f", {part.kind}" for (_, part), compiled in self.parts.items()}
        return [
            record.row(self.role, self.role.label + kinds.get(id(record.ran), ""), self.budget_bytes)
            for record in self.records
            if any(record.ran is ran for ran in current)
        ]
