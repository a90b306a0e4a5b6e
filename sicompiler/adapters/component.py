"""One method of one component of a pipeline: planned within what the rest of the pipeline leaves of the budget."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.utils._pytree as pytree

from sicompiler.adapters.held import Reserved, storages, weights_of
from sicompiler.adapters.roles import Role, check_component
from sicompiler.capture import Program, capture, flatten_inputs
from sicompiler.compiler import FarMemory, Planner, rewrite
from sicompiler.errors import CaptureError, OverBudget
from sicompiler.passes.cut import full_program, skip_program
from sicompiler.passes.manager import run_stage
from sicompiler.plan import Plan
from sicompiler.rehash.sketch import PIECE, SCRATCH
from sicompiler.reports.phases import PhaseRow
from sicompiler.runtime.compiled import Compiled, call_key, check_inference
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.placement import place, restore
from sicompiler.search.search import Progress
from sicompiler.takeover import HOOK, State, analyse
from sicompiler.units import budget_hint, format_bytes

if TYPE_CHECKING:
    from sicompiler.adapters.pipeline import PipelineState

log = logging.getLogger("sicompiler")


Kind = Literal["full", "skip"]


@dataclass(frozen=True)
class Part:
    """A part of a denoiser's graph that runs on its own, or the graph with more outputs (`passes.cut`).

    Attributes:
        kind: "full" gives the values of the cut too, "skip" starts at them.
        cut: positions in the clean graph.
        snapshots: how many features are held beside its own inputs and outputs while it runs.
        looked_at: whether its features are looked at afterwards, piece by piece: by a guard, or to learn from them.
        beside_bytes: of features of other cuts that are held.
    """

    kind: Kind
    cut: tuple[int, ...]
    snapshots: int
    looked_at: bool = False
    beside_bytes: int = 0

    def scratch_bytes(self, values: Sequence[torch.Tensor]) -> int:
        """What looking at the features takes."""
        return SCRATCH * min(max(v.numel() for v in values), PIECE) if self.looked_at else 0

    def of(self, clean: Program) -> Program:
        """Cut a clean program."""
        return full_program(clean, self.cut) if self.kind == "full" else skip_program(clean, self.cut)


@dataclass
class Record:
    """What happened with one plan of a component, or, without a plan, with its untouched runs.

    Attributes:
        compiled: the plan; None where the component runs untouched.
        reserved: the most that the rest of the pipeline held while it ran.
        own_weights_bytes: of the component, resident while it ran.
        measured_bytes: the highest peak measured, of the whole pipeline.
        calls: how often it ran.
    """

    compiled: Compiled | None
    reserved: Reserved = field(default_factory=Reserved)
    own_weights_bytes: int = 0
    measured_bytes: int | None = None
    calls: int = 0


class ComponentState(State):
    """A taken-over method of a pipeline's component.

    Args:
        model: the component.
        role: what it does.
        pipeline: the state of the pipeline it belongs to.
        budget_bytes: of the whole pipeline.
        progress: told about long work.
        far_memory: "auto" allows to spill values and to stream weights, once all idle components have been moved away.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        role: Role,
        pipeline: PipelineState,
        budget_bytes: int,
        progress: Progress | None,
        far_memory: FarMemory,
    ) -> None:
        super().__init__(model, budget_bytes, None, progress, role.method, far_memory)
        self.role, self.pipeline = role, pipeline
        self.records: list[Record] = []
        self.untouched_because = ""  # why it can't be captured, once that has been tried
        self.beside: dict[int, frozenset[str]] = {}  # by id of a plan: what else was on the device when it was made
        self.reserved = Reserved()  # by the rest of the pipeline, in the newest call
        self.programs: dict[Hashable, Program] = {}  # clean and whole, of which parts are made
        self.parts: dict[tuple[Hashable, Part], Compiled] = {}  # by call
        self.analyses: dict[tuple[Hashable, Kind, tuple[int, ...]], tuple[Program, Planner]] | None = None
        self.planning_seconds = 0.0  # spent so far, in calls that were timed otherwise
        self._room: dict[tuple[Hashable, Part], int] = {}  # bytes of features beside each part, at each shape

    @property
    def alive(self) -> bool:
        """Whether the component still exists: a pipeline may have dropped it, as it does when it unloads an adapter."""
        return self._model() is not None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the component by its plan, within what is left of the budget now."""
        check_inference(args, kwargs)
        self.pipeline.check()
        check_component(self.role.label, self.model)
        hook = self.model.__dict__.get(HOOK)
        if self.method != "forward" and hook is not None:
            hook.pre_forward(self.model)  # diffusers' own decode and encode begin by this; forward has it in front
        device = self.device_of(args, kwargs)
        self.pipeline.bring(self, device)
        self.reserved = self.pipeline.reserved(self, (args, kwargs), device)
        rehash = self.pipeline.rehash
        loop = rehash.loop_of(self) if rehash is not None else None
        if rehash is not None and loop is not None:
            return rehash.evaluate(self, loop, args, kwargs, device)
        return self.run_whole(args, kwargs, device)

    def run_whole(self, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Any:
        """Run by the plan of the whole graph, or untouched where it can't be captured and need not."""
        if not self.untouched_because:
            try:
                compiled = self.compiled_for(args, kwargs)
            except CaptureError as error:
                if not self.role.optional:
                    raise
                self.untouched_because = str(error).splitlines()[0]
                log.warning("%s runs untouched, as it can't be captured: %s", self.role.label, self.untouched_because)
            else:
                inputs = flatten_inputs(args, kwargs)[0]
                place(self.model, compiled.plan.streamed, device)
                return self._run(compiled, lambda: compiled.run(self.model, inputs), (args, kwargs), device)
        with self.untouched() as own, torch.no_grad():
            return self._run(None, lambda: own(*args, **kwargs), (args, kwargs), device)

    def key_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
        """All that a trace of a call depends on."""
        return call_key(self._noticed, self.model, args, kwargs)

    def whole_program(self, args: Sequence[Any], kwargs: Mapping[str, Any], key: Hashable | None = None) -> Program:
        """The clean graph for the shapes of a call, of which parts are made.

        Args:
            args: of the call.
            kwargs: of the same.
            key: of it (`key_of`), where that is known.
        """
        key = key or self.key_of(args, kwargs)
        if key not in self.programs:
            restore(self.model, self.device_of(args, kwargs))  # a trace reads where the weights are
            with self.untouched():
                self.programs[key] = run_stage("clean", capture(self.model, args, kwargs, method=self.method))
        return self.programs[key]

    def part_for(
        self, part: Part, args: Sequence[Any], kwargs: Mapping[str, Any], key: Hashable | None = None
    ) -> Compiled:
        """A part of the graph, planned within what is left of the budget beside the features that are held.

        Args:
            part: which.
            args: of the call of the whole denoiser.
            kwargs: of the same.
            key: of it (`key_of`), where that is known.

        Raises:
            OverBudget: no plan fits beside them.
        """
        call = key or self.key_of(args, kwargs)
        key = (call, part)  # with what is held beside it: a plan that leaves room for much is slow where little is held
        found = self.parts.get(key)
        if key not in self._room:
            nodes = list(self.whole_program(args, kwargs, call).graph_module.graph.nodes)
            values = [nodes[p].meta["val"] for p in part.cut]
            self._room[key] = (
                part.snapshots * sum(v.nbytes for v in values) + part.scratch_bytes(values) + part.beside_bytes
            )
        self.reserved = replace(self.reserved, snapshot_bytes=self._room[key])
        if found is None or not self.still_fits(found, args, kwargs):
            with self._planning():
                cut, planner = self._analysed(call, part, args, kwargs)
                plan = self.choose(planner, args, kwargs)
                found = self.parts[key] = Compiled(rewrite(cut, plan), plan)
        return found

    def compile(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Compiled:
        """Capture, plan and rewrite for the shapes of a call."""
        with self._planning():
            return super().compile(args, kwargs)

    @contextlib.contextmanager
    def _planning(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.planning_seconds += time.perf_counter() - began

    def _analysed(
        self, call: Hashable, part: Part, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Program, Planner]:
        """The program of a part and its planner; while `analyses` is a dict they are kept there.

        Parts that differ in what is held beside them are planned from one analysis, and analyses are large.
        """
        key, kept = (call, part.kind, part.cut), self.analyses
        if kept is not None and key in kept:
            return kept[key]
        cut = part.of(self.whole_program(args, kwargs, call))
        found = cut, analyse(self.model, cut, method=self.method, progress=self.progress)
        if kept is not None:
            kept[key] = found
        return found

    def keep_analyses(self) -> None:
        """Keep what parts are planned from, until they are forgotten: many parts of the same cut are to come."""
        self.analyses = self.analyses or {}

    def forget_parts(self, but: Collection[Part]) -> None:
        """Let go of all parts but some, and of what they were planned from."""
        self.analyses = None
        gone = {id(compiled) for key, compiled in self.parts.items() if key[1] not in but}
        self.parts = {key: compiled for key, compiled in self.parts.items() if id(compiled) not in gone}
        self.records = [record for record in self.records if id(record.compiled) not in gone]

    def run_part(
        self, compiled: Compiled, inputs: Sequence[Any], kept: Sequence[torch.Tensor], device: torch.device
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

    def place_weights(self, compiled: Compiled, device: torch.device) -> None:
        """Move weights to where a plan wants them."""
        place(self.model, compiled.plan.streamed, device)

    def still_fits(self, compiled: Compiled, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a plan made before leaves room for what the pipeline holds by now.

        Components that were away when it was made may have come back since: they go again.
        """
        beside = self.beside.get(id(compiled.plan), frozenset())
        while compiled.plan.predicted_peak_bytes + self.reserved.total_bytes > self.budget_bytes:
            if not self._make_room(args, kwargs, beside):
                return False
        return True

    def choose(self, planner: Planner, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plan:
        """The fastest plan within what the rest of the pipeline leaves.

        Idle components go first; only then values and weights of this one are kept in far memory.

        Raises:
            OverBudget: no plan fits, whatever is moved away.
        """
        far_memory: FarMemory = "none"
        while True:
            try:
                plan = planner.plan(self.budget_bytes - self.reserved.total_bytes, far_memory=far_memory)
                self.beside[id(plan)] = frozenset(name for name, _ in self.reserved.weights)
                return plan
            except OverBudget as error:
                if self._make_room(args, kwargs):
                    continue
                if far_memory == self.far_memory:
                    raise self._over_budget(error) from None
                far_memory = self.far_memory

    def _make_room(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: frozenset[str] = frozenset()) -> bool:
        device = self.device_of(args, kwargs)
        if not self.pipeline.make_room(self, device, keep):
            return False
        snapshot_bytes = self.reserved.snapshot_bytes
        self.reserved = self.pipeline.reserved(self, (args, kwargs), device)
        self.reserved = replace(self.reserved, snapshot_bytes=snapshot_bytes)
        return True

    def _over_budget(self, error: OverBudget) -> OverBudget:
        floor_bytes = error.floor_bytes + self.reserved.total_bytes
        parts = [f"{name} {format_bytes(nbytes)}" for name, nbytes in self.reserved.weights]
        others = f"{format_bytes(self.reserved.weights_bytes)} of other weights ({', '.join(parts)})" if parts else ""
        held = f"{format_bytes(self.reserved.held_bytes)} that the pipeline holds"
        kept = f"{format_bytes(self.reserved.snapshot_bytes)} of features kept from step to step (Step Rehash)"
        kept = kept if self.reserved.snapshot_bytes else ""
        return OverBudget(
            f"{self.pipeline.name} does not fit {format_bytes(self.budget_bytes)} in phase {self.role.phase}: "
            f"{self.role.label} needs {format_bytes(error.floor_bytes)} at least, set by {error.culprit}, beside "
            f"{' and '.join(filter(None, (others, kept, held)))}. "
            f"The nearest budget that works is {budget_hint(floor_bytes)}",
            budget_bytes=self.budget_bytes,
            floor_bytes=floor_bytes,
            culprit=error.culprit,
        )

    def _run(self, compiled: Compiled | None, call: Callable[[], Any], inputs: Any, device: torch.device) -> Any:
        """Run, keep the books, and measure where that is asked for; an untouched encoder is measured always."""
        record = next((r for r in self.records if r.compiled is compiled), None)
        if record is None:
            record = Record(compiled)
            self.records.append(record)
        record.calls += 1
        weights = weights_of(self.model, device)
        record.own_weights_bytes = sum(weights.values())
        if self.reserved.total_bytes >= record.reserved.total_bytes:
            record.reserved = self.reserved
        if not self.pipeline.measure_calls and (compiled is not None or self.pipeline.measuring):
            return call()
        tensors = (x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))
        resident = sum((weights | storages(tensors, device)).values()) + self.reserved.total_bytes
        resident -= self.reserved.margin_bytes + self.reserved.snapshot_bytes  # what is kept is among the inputs
        with measure_peak(device) as peak:
            result = call()
        record.measured_bytes = max(record.measured_bytes or 0, resident + peak.bytes)
        if compiled is None and record.measured_bytes > self.budget_bytes:
            log.warning(
                "%s, which runs untouched, took the pipeline to %s, above its budget of %s",
                self.role.label,
                format_bytes(record.measured_bytes),
                format_bytes(self.budget_bytes),
            )
        return result

    def rows(self) -> list[PhaseRow]:
        """One row for each plan in use, and one for untouched runs."""
        current = [*self.compiled.values(), *self.parts.values()]
        return [self._row(r) for r in self.records if r.compiled is None or any(r.compiled is c for c in current)]

    def _row(self, record: Record) -> PhaseRow:
        plan, beside = record.compiled.plan if record.compiled else None, record.reserved.total_bytes
        own = record.own_weights_bytes
        resident = {self.role.component: own} if own else {}
        resident |= dict(record.reserved.weights)
        return PhaseRow(
            phase=self.role.phase.value,
            component=self.role.label
            + next((f", {part.kind}" for (_, part), c in self.parts.items() if c is record.compiled), ""),
            resident=tuple(resident),
            weights_bytes=own + record.reserved.weights_bytes,
            held_bytes=record.reserved.held_bytes + record.reserved.margin_bytes,
            activations_bytes=None if plan is None else plan.predicted_peak_bytes - plan.weights_bytes,
            unsliced_peak_bytes=None if plan is None else plan.unsliced_peak_bytes + beside,
            predicted_peak_bytes=None if plan is None else plan.predicted_peak_bytes + beside,
            floor_bytes=None if plan is None else plan.floor_bytes + beside,
            floor_operator="" if plan is None else plan.floor_operator,
            budget_bytes=self.budget_bytes,
            measured_peak_bytes=record.measured_bytes,
            calls=record.calls,
            note=self.untouched_because if plan is None else "",
        )
