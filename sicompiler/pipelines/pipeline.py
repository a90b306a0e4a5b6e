"""A whole diffusers pipeline under one budget: its components are taken over in place, and watched at every call."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from sicompiler.cache.store import Store
from sicompiler.compiled_module import installed_state
from sicompiler.compiler.planner import Offload
from sicompiler.compiler.search import Progress
from sicompiler.device import device_kind
from sicompiler.errors import BadInput, NotCompiled
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.components import modules_of, pipeline_class
from sicompiler.pipelines.eviction import IdleComponent, eviction_order
from sicompiler.pipelines.rehash.hooks import PipelineRehash
from sicompiler.pipelines.rehash.looping import watch
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.reserved import ATTRIBUTE, Reserved, reserved
from sicompiler.pipelines.residency import Residency
from sicompiler.pipelines.roles import (
    Phase,
    Role,
    as_after_a_call,
    check_component,
    check_pipeline,
    roles_of,
)
from sicompiler.pipelines.tenants import Tenant
from sicompiler.pipelines.verify import PipelineVerification, compare_components, compare_runs
from sicompiler.pipelines.weights import storages, weights_of
from sicompiler.planners.registry import DP, ChosenPlanner
from sicompiler.rehash.request import Rehash
from sicompiler.reports.phases import PipelineReport
from sicompiler.runtime.examples import Inputs
from sicompiler.runtime.placement import restore, streams
from sicompiler.turns import turn_of

log = logging.getLogger("sicompiler")

ENTRANCE = "check_inputs"  # what pipelines call first

_compiled: weakref.WeakSet[CompiledPipeline] = weakref.WeakSet()
_compiled_lock = threading.Lock()


def is_pipeline(found: object) -> bool:
    """Whether something is a diffusers pipeline; diffusers is not imported to find out."""
    base = pipeline_class()
    return base is not None and isinstance(found, base)


def pipeline_state(pipe: object, verb: str) -> CompiledPipeline:
    """The state of a compiled pipeline.

    Raises:
        NotCompiled: it was never compiled.
    """
    found = getattr(pipe, "__dict__", {}).get(ATTRIBUTE)
    if not isinstance(found, CompiledPipeline):
        raise NotCompiled(
            f"can't {verb} this {type(pipe).__name__}: it was never compiled; call compile_for_budget first"
        )
    return found


def _ran(tenant: Tenant | None) -> bool:
    return tenant is not None and bool(tenant.records)


class CompiledPipeline:
    """What sicompiler keeps for one pipeline.

    Args:
        pipe: the pipeline; it is not kept alive.
        budget_bytes: everything on the device, in every phase.
        progress: told about long work.
        offload: whether values and weights may be offloaded.
        store: where programs and plans of other processes lie; None to do without.
        planner: what chooses the regions of all plans.
    """

    def __init__(
        self,
        pipe: Any,
        budget_bytes: int,
        progress: Progress | None,
        offload: Offload = "auto",
        store: Store | None = None,
        planner: ChosenPlanner = DP,
    ) -> None:
        self._pipe = weakref.ref(pipe)
        self.store, self.planner = store, planner
        self.name, self.budget_bytes, self.progress = type(pipe).__name__, budget_bytes, progress
        self.components: dict[Role, CompiledComponent] = {}
        self.offload: Offload = offload
        self.residency = Residency(offloaded=offload == "auto")
        self.measure_calls = False  # measure the calls of components, each on its own
        self.rehash: PipelineRehash | None = None
        self._before: dict[str, Any] = {}  # what the pipeline itself had in the place of what is patched
        self.resting = False  # the components run untouched for a while

    @staticmethod
    def take_over(
        pipe: Any,
        budget_bytes: int,
        progress: Progress | None,
        offload: Offload = "auto",
        rehash: Rehash | None = None,
        store: Store | None = None,
        planner: ChosenPlanner = DP,
    ) -> CompiledPipeline:
        """Let a pipeline run within a budget from now on; a budget it had before is replaced.

        Raises:
            BadInput: it can't be taken over; the message says why and what to do. It is left as it was.
        """
        check_pipeline(pipe)
        state = CompiledPipeline(pipe, budget_bytes, progress, offload, store, planner)
        state.rehash = None if rehash is None else PipelineRehash(state, rehash)  # reads its plan, which may fail
        previous = pipe.__dict__.get(ATTRIBUTE)
        if isinstance(previous, CompiledPipeline):
            previous.release()
        try:
            state.install(pipe)
        except BaseException:
            state.release()
            if isinstance(previous, CompiledPipeline):
                previous.install(pipe)
            raise
        return state

    def install(self, pipe: Any) -> None:
        """Put this state on a pipeline that has none."""
        setattr(pipe, ATTRIBUTE, self)
        with _compiled_lock:
            _compiled.add(self)
        self._watch(pipe)
        for role in roles_of(pipe):
            self._install(pipe, role)
        if self.rehash is not None:
            watch(self.rehash, pipe)

    @property
    def pipe(self) -> Any:
        """The live pipeline; None once it is gone, though its components may live on."""
        return self._pipe()

    def plans(self, component: str) -> bool:
        """Whether a component has to run by a plan: some method of it may not run untouched."""
        return any(role.component == component and not role.optional for role in self.components)

    def _watch(self, pipe: Any) -> None:
        """See every call of the pipeline before it does anything."""
        entrance = getattr(pipe, ENTRANCE, None)
        if entrance is None:
            return  # the components look around too, when they are called

        @functools.wraps(entrance)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.check()
            for part in modules_of(pipe).values():
                as_after_a_call(part)
            return entrance(*args, **kwargs)

        self.patch(ENTRANCE, watched)

    def patch(self, name: str, value: Any) -> None:
        """Set an attribute of the pipeline until it is released."""
        self._before.setdefault(name, self.pipe.__dict__.get(name))
        setattr(self.pipe, name, value)

    def _install(self, pipe: Any, role: Role) -> None:
        model = getattr(pipe, role.component)
        tenant = Tenant(self, role, self.budget_bytes, self.offload, self.progress)
        with turn_of(model).taken():
            previous = installed_state(model, role.method)
            if isinstance(previous, CompiledComponent):
                previous.tenants.admit(tenant)
                previous.agree()
                self.components[role] = previous
                return
            state = self.components[role] = CompiledComponent(model, tenant)
            if previous is not None:
                state.beneath = previous  # compiled on its own
                previous.uninstall()
            state.install()

    def check(self) -> None:
        """Make sure that every component is still taken over: replaced ones are taken over now, lost patches renewed.

        Raises:
            NotCompiled: a component was compiled again by somebody else, or its method was replaced.
        """
        pipe = self.pipe
        if pipe is None or self.resting:
            return
        roles = set(roles_of(pipe))
        for role in [r for r in self.components if r not in roles]:
            self._drop(role, self.components.pop(role))
        for role in roles:
            state = self.components.get(role)
            model = getattr(pipe, role.component)
            if state is None or not state.alive or state.model is not model:
                log.warning("%s: %s is new, it is taken over", self.name, role.label)
                if state is not None:
                    self._drop(role, state)
                self._install(pipe, role)
            elif not state.installed:
                self._renew(pipe, role, state)

    def _drop(self, role: Role, state: CompiledComponent) -> None:
        """Give a component back as it was, if there is still somebody who has it."""
        if not state.alive:
            return
        with state.turn.taken():
            if state.tenants.dismiss(self, role):
                state.agree()
                return
            state.uninstall()
            self.residency.bring(state.model)
            if state.beneath is not None:
                state.beneath.install()

    def _renew(self, pipe: Any, role: Role, state: CompiledComponent) -> None:
        """Patch a component again where its own method came back; never over somebody else's patch."""
        planned = self.plans(state.role.component)
        check_component(state.role.label, state.model, planned=planned)  # who put a hook there is told about hooks
        owner, found = installed_state(state.model, state.method), state.model.__dict__.get(state.slot)
        if isinstance(owner, CompiledComponent):  # taken over by another pipeline while the patch was lost
            self._drop(role, state)
            self._install(pipe, role)
            return
        if found is not None and getattr(found, "__func__", None) is not getattr(type(state.model), state.method):
            what = f"has another {state.method} by now ({getattr(found, '__qualname__', type(found).__name__)})"
        else:
            log.warning("%s: %s had lost its plan and gets it back", self.name, state.role.label)
            state.install()
            return
        raise NotCompiled(
            f"{state.role.label} of this {self.name} {what}, so the pipeline would run past its budget; "
            "call compile_for_budget on the pipeline again"
        )

    def bring(self, state: CompiledComponent, device: torch.device) -> None:
        """Move a component back that had to go, after making room for it."""
        model = state.model
        if not self.residency.missing(model, device):
            return
        needed = max(state.needed_bytes, sum(weights_of(model, torch.device("cpu")).values()))
        while self.reserved(state, (), device).total_bytes + needed > self.budget_bytes:
            if not self.make_room(state, device):
                break
        self.residency.bring(model, state.last[0].plan.streamed if state.last else ())

    def reserved(self, state: CompiledComponent, inputs: Any, device: torch.device) -> Reserved:
        """What the rest of the pipeline occupies while a component runs.

        Features that Step Rehash keeps are left out for the denoiser, whose plans have room for them.
        """
        rehash = self.rehash
        kept = rehash.kept() if rehash is not None else []
        elsewhere = self._elsewhere() if device_kind(device).has_counters else ()  # where the allocator counts them too
        found = reserved(self.pipe, state.model, (inputs, kept), device, elsewhere)
        if rehash is not None and state.role.component != rehash.component:
            found = replace(found, held_bytes=found.held_bytes + sum(storages(kept, device).values()))
        return found

    def _elsewhere(self) -> Iterator[torch.nn.Module]:
        """The components of other compiled pipelines, looked up where somebody asks: on a CPU no call does."""
        with _compiled_lock:
            pipes = [state.pipe for state in _compiled if state is not self]
        for pipe in pipes:
            if pipe is not None:
                yield from modules_of(pipe).values()

    def make_room(self, state: CompiledComponent, device: torch.device, keep: frozenset[str] = frozenset()) -> bool:
        """Move an idle component away, in the order of `eviction_order`.

        Args:
            state: what is about to run.
            device: to make room on.
            keep: names of components that stay.
        """
        parts = {} if self.pipe is None else modules_of(self.pipe)
        phases: dict[str, set[Phase]] = {}
        for role in self.components:
            phases.setdefault(role.component, set()).add(role.phase)
        idle = [
            IdleComponent(name, frozenset(phases.get(name, ())), sum(weights_of(part, device).values()))
            for name, part in parts.items()
            if part is not state.model and name not in keep
        ]
        order = eviction_order(idle, state.role.phase)
        return self.residency.make_room([(name, parts[name]) for name in order], device, state.turn) is not None

    def beside(self, state: CompiledComponent) -> tuple[int, list[str]]:
        """What is known of the other components, for an error of one.

        Returns:
            The smallest budget for what has run so far (0 where idle components can be moved away, which lowers it),
            and what has not run yet.
        """
        others = [other for other in self.components.values() if other is not state]
        fixed = not self.residency.moves_away_from(state.home)
        known = max((r.floor_bytes for other in others for r in other.records), default=0) if fixed else 0
        return known, [other.role.label for other in others if not other.records]

    def clear(self, device: torch.device) -> None:
        """Move every component away, if the budget asks to move any: a CPU's counter sees only what comes."""
        parts = {} if self.pipe is None else modules_of(self.pipe)
        if any(self.residency.is_away(part) or streams(part) for part in parts.values()):
            while self.residency.make_room(parts.items(), device) is not None:
                pass

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """A context in which the pipeline runs as it would without us, with all components where they were."""
        self.resting = True
        unseen = self.rehash.running(Mode.RESTING) if self.rehash is not None else contextlib.nullcontext()
        try:
            with unseen:
                self._bring_all(modules_of(self.pipe).values())
                for state in self.components.values():
                    if state.alive:
                        with state.turn.taken():
                            restore(state.model, state.home)
                yield
        finally:
            self.resting = False

    def _bring_all(self, parts: Iterable[torch.nn.Module]) -> None:
        for part in parts:
            with turn_of(part).taken():
                self.residency.bring(part)

    def release(self) -> None:
        """Undo `take_over` exactly; components that other compiled pipelines share stay theirs."""
        with _compiled_lock:
            _compiled.discard(self)
        for role, state in self.components.items():
            self._drop(role, state)
        pipe = self.pipe
        if pipe is not None:
            shared = set(map(id, self._elsewhere()))
            self._bring_all(part for part in modules_of(pipe).values() if id(part) not in shared)
            for name, value in self._before.items():
                pipe.__dict__.pop(name, None)
                if value is not None:
                    pipe.__dict__[name] = value  # a user's
            pipe.__dict__.pop(ATTRIBUTE, None)

    def report(self) -> PipelineReport:
        """What was planned: one row for each component and input shape, in the order of the phases."""
        states = list(self.components.items())
        tenants = [(state, state.tenants.of(self, role)) for role, state in states]
        return PipelineReport(
            self.name,
            self.budget_bytes,
            tuple(row for state, tenant in tenants for row in state.rows(tenant)),
            {role.label: state.report() for role, state in states if state.compiled},
            tuple(role.label for (role, _), (_, tenant) in zip(states, tenants, strict=True) if not _ran(tenant)),
        )

    def verify(self, example_inputs: Inputs | None) -> PipelineVerification:
        """Compare with the untouched pipeline: a whole call if one is given, else component by component.

        Raises:
            BadInput: nothing ran yet, and no call is given.
        """
        if example_inputs is not None:
            return compare_runs(self, example_inputs)
        if not any(state.last for state in self.components.values()):
            raise BadInput("nothing is planned yet: pass example_inputs=(args, kwargs), or call the pipeline once")
        return compare_components(self)

    def __deepcopy__(self, memo: object) -> CompiledPipeline:
        """Refuse: a copy would run the weights of the pipeline it was copied from."""
        raise BadInput("a compiled pipeline can't be copied or pickled; call sicompiler.release(pipe) first")

    def __reduce__(self) -> str:
        """Refuse, as for copies."""
        return str(self.__deepcopy__({}))
