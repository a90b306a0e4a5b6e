"""A live model taken over: one of its methods runs by plans made for each call shape, until it is given back.

The model stays the object it is. What changes is one attribute of the instance: the method itself, or, where accelerate
has put a hook in front of `forward`, the `_old_forward` which that hook calls. Patched there, the model survives hooks
being added, removed and added again.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import operator
import threading
import time
import types
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from sicompiler.cache.store import Store
from sicompiler.capture import Program, capture, named_tensors, weights_bytes
from sicompiler.capture.decisions import Decision
from sicompiler.capture.entry import FORWARD, OURS, entry_label, only_patch
from sicompiler.collector import frozen_gc
from sicompiler.compiler.decisions import CallKey, Decisions
from sicompiler.compiler.planner import Offload, Planner, rewrite
from sicompiler.compiler.prepare import captured_program, check_weights, device_type_of, dtype_name, prepare
from sicompiler.compiler.reserve import plan_reserving
from sicompiler.compiler.search import Progress
from sicompiler.errors import BadInput
from sicompiler.guards import ModuleGuards
from sicompiler.plan import Plan
from sicompiler.planners.registry import DP, ChosenPlanner
from sicompiler.reports.report import Report
from sicompiler.runtime.call import Call
from sicompiler.runtime.compiled import Executable, Untouched, call_key, check_inference
from sicompiler.runtime.examples import Inputs, checked_inputs, random_inputs, without_data
from sicompiler.runtime.news import KnownCall, news
from sicompiler.runtime.placement import place, restore, streams
from sicompiler.runtime.verify import Verification, compare
from sicompiler.turns import executing, turn_of
from sicompiler.units import format_bytes, format_seconds

log = logging.getLogger("sicompiler")

MAX_PLANS = 64  # of one method; states of a model that never come back would add up
MAX_PLANNERS = 4  # kept for another budget: what is known of a graph is larger than the graph
HOOK, HOOKED = "_hf_hook", "_old_forward"  # where accelerate keeps its hook, and the forward that the hook calls


class CompiledModule:
    """What sicompiler keeps for one method of a live model.

    Args:
        model: the model; it is not kept alive.
        budget_bytes: weights, inputs, activations and workspace together.
        plan: made earlier, used for the first shape that is planned.
        progress: told about long work.
        method: which of its methods is taken over.
        offload: "auto" allows to spill values and to stream weights, where nothing else fits.
        path: what the model is called in what is said of it: its name in a pipeline.
        store: where programs and plans of other processes lie; None to do without.
        planner: what chooses the regions of its plans.
    """

    def __init__(  # noqa: PLR0913  # what a user or a pipeline says of the model
        self,
        model: torch.nn.Module,
        budget_bytes: int,
        plan: Plan | None = None,
        progress: Progress | None = None,
        method: str = FORWARD,
        offload: Offload = "auto",
        path: str = "",
        store: Store | None = None,
        planner: ChosenPlanner = DP,
    ) -> None:
        self._model = weakref.ref(model)
        self.store, self.planner = store, planner
        self.offload: Offload = offload
        self.budget_bytes, self.given_plan, self.progress, self.method = budget_bytes, plan, progress, method
        self.home = next(iter(named_tensors(model).values()), torch.empty(0)).device  # where its weights are
        self.own: Callable[..., Any] | None = None  # what the instance itself had in the place of our patch
        self._owns = False  # the patch was put there; whoever has put something else there since may lead back to it
        self.compiled: dict[Hashable, Executable] = {}
        self.planners: dict[Hashable, Planner] = {}  # by call, for another budget or reservation
        self.last: tuple[Executable, Inputs] | None = None
        self._last_call: CallKey | None = None  # of these inputs
        this = weakref.proxy(self)  # the guards are ours, and must not keep us
        self.guards = ModuleGuards(lambda attributes: this.seen(attributes), (method,), path)
        self._decisions = Decisions()
        self._known: KnownCall | None = None  # of the call before
        self._lock = threading.RLock()
        self._entry = self._bound_entry(model)
        self.turn = turn_of(model)
        self._untouched_in = 0  # the thread in which the model runs its own method for a while

    @property
    def model(self) -> torch.nn.Module:
        """The live model."""
        model = self._model()
        assert model is not None
        return model

    def _bound_entry(self, model: torch.nn.Module) -> types.MethodType:
        """What is put on the instance: bound to this state, with the signature of the method it stands for."""

        # A torch.compile around the model leaves it to us, and does not go through our code.
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def entry(state: CompiledModule, *args: Any, **kwargs: Any) -> Any:
            if state._untouched_in == threading.get_ident():
                return state.own_method()(*args, **kwargs)
            return state.forward(*args, **kwargs)

        entry.__name__ = entry.__qualname__ = self.method
        entry.__dict__[OURS] = operator.attrgetter("own")
        with contextlib.suppress(TypeError, ValueError):  # pipelines ask which arguments a component takes
            entry.__dict__["__signature__"] = inspect.signature(getattr(type(model), self.method))
        return types.MethodType(entry, self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model by the plan for this input shape, planning first where there is none yet."""
        call = Call.of(self.model, args, kwargs)
        check_inference(call)
        check_weights(self.model)
        with self.turn.taken(), executing():
            compiled = self.compiled_for(call)
            place(self.model, compiled.plan.streamed, call.device)
            return compiled.run(self.model, call.flat)

    def compiled_for(self, call: Call) -> Executable:
        """The rewritten model for a call; planned now if need be."""
        key = self.key_of(call)
        with self._lock:
            compiled = self.compiled.get(key)
            if compiled is None or not self.still_fits(compiled, call):
                why = "more is reserved for others than before" if compiled else self._decisions.news(key)
                began = time.perf_counter()
                compiled = self.compile(call)
                key = self.learn(compiled.program, call)
                self.compiled[key] = compiled
                if self._known is not None:
                    why = why or news(self._known, KnownCall(key[0], self.guards.facts))
                    name, seconds = type(self.model).__name__, format_seconds(time.perf_counter() - began)
                    log.warning("%s: planned again in %s, as %s", entry_label(name, self.method), seconds, why)
                while len(self.compiled) > MAX_PLANS:
                    self.compiled.pop(next(iter(self.compiled)))
            self._known = KnownCall(key[0], self.guards.facts)
            read = self._decisions.read(compiled.program.decided)
            if read or self._last_call != key or self.last is None:  # inputs alike are alike without their data
                self.last = (compiled, without_data(*call.inputs, read))
            self.last, self._last_call = (compiled, self.last[1]), key
        return compiled

    def key_of(self, call: Call) -> CallKey:
        """What a plan depends on: the key of the call, and how what is decided by values comes out for it."""
        key = call_key(self.guards, self.model, call)
        return key, self._decisions.outcomes(key, self.model, call.flat)

    def learn(self, program: Program, call: Call) -> CallKey:
        """Keep what was decided in the trace of a call; gives the key of the call, which depends on it."""
        key = call_key(self.guards, self.model, call)
        self._decisions.learn(key, program.decided)
        return key, tuple(one.outcome for one in program.decided)

    def decide(self, decision: Decision, arguments: Sequence[Any]) -> torch.Tensor:
        """Plan and run a decision for the call that is traced."""
        return self._decisions.plan(self.model, decision, arguments, self.room_bytes, device_type_of(self.model))

    @property
    def room_bytes(self) -> int:
        """How much of the budget this model may take now: all of it, where it is alone."""
        return self.budget_bytes

    def still_fits(self, compiled: Executable, call: Call) -> bool:
        """Whether a plan made before is within the budget of this call; of a model on its own, always."""
        return True

    def choose(self, planner: Planner, call: Call) -> Plan:
        """The plan for a call.

        Raises:
            OverBudget: no plan fits.
        """
        return plan_reserving(planner, self.budget_bytes, chooser=self.planner, offload=self.offload)

    @frozen_gc()  # what there was before stays: to walk through it takes longer than to make what is made here
    def compile(self, call: Call) -> Executable:
        """Capture, plan and rewrite for the shapes of a call; the live model is left alone."""
        _check_parts(self.model)
        restore(self.model, call.device)  # a trace reads where the weights are
        key = self.key_of(call)
        with self.untouched():
            given = self.given_plan
            if given is not None:
                given.check(device=device_type_of(self.model), dtype=dtype_name(self.model))
                program, plan = capture(self.model, *call.inputs, method=self.method, decide=self.decide), given
            else:
                planner = self.planners.get(key) or self._prepared(call)
                program, plan = planner.program, self.choose(planner, call)
        if given is not None:
            rewritten, find_floor, untouched = rewrite(program, plan, given=True), None, Untouched()
            given.check_bytes(weights_bytes(self.model, given.device), self.budget_bytes)
        else:
            rewritten, find_floor = planner.rewrite(plan), planner.floor_of(plan)
            untouched = Untouched(planner.untouched_bytes())
            outcomes = tuple(one.outcome for one in program.decided)
            self.keep_planner((call_key(self.guards, self.model, call), outcomes), planner)
        plan = self._decisions.counted(plan, self.model, program.decided)
        compiled = Executable(rewritten, plan, find_floor, untouched)
        self.given_plan = None  # not before: a plan that was refused is not silently replaced by another
        log.info(
            "%s: %d regions, predicted peak %s of %s, planned in %s",
            plan.model,
            len(plan.regions),
            format_bytes(plan.predicted_peak_bytes),
            format_bytes(plan.budget_bytes),
            format_seconds(sum(plan.timings.values())),
        )
        return compiled

    def captured(self, call: Call) -> Program:
        """The program of a call, not planned; that of an earlier process, where it is known."""
        model, method = self.model, self.method
        return captured_program(
            model, *call.inputs, method=method, decide=self.decide, store=self.store, guards=self.guards
        ).program

    def _prepared(self, call: Call) -> Planner:
        """Capture and analyse the method for the shapes of a call."""
        return prepare(
            self.model,
            *call.inputs,
            method=self.method,
            progress=self.progress,
            decide=self.decide,
            store=self.store,
            guards=self.guards,
        )[1]

    def keep_planner(self, key: Hashable, planner: Planner) -> None:
        """Keep a planner for another budget, another reservation, or who asks for the floor; the oldest one goes."""
        self.planners.pop(key, None)
        self.planners[key] = planner
        while len(self.planners) > MAX_PLANNERS:
            self.planners.pop(next(iter(self.planners)))

    def verify(self, example_inputs: Inputs | None = None) -> Verification:
        """Run the taken-over method once against the model's own.

        Args:
            example_inputs: `(args, kwargs)`; random tensors of the last planned shapes if not given.

        Raises:
            BadInput: nothing was planned yet, and no inputs are given.
        """
        if example_inputs is None:
            if self.last is None:
                raise BadInput("nothing is planned yet: pass example_inputs=(args, kwargs), or call the model once")
            device = next(iter(named_tensors(self.model).values()), torch.empty(0)).device
            example_inputs = random_inputs(self.last[1], device)
        args, kwargs = checked_inputs(example_inputs)
        call = Call.of(self.model, tuple(args), dict(kwargs))
        with self.turn.taken(), executing():
            compiled = self.compiled_for(call)
            before = functools.partial(place, self.model, compiled.plan.streamed, call.device)
            restore(self.model, call.device)
            with self.untouched() as own:
                result = compare(self.model, compiled, args, kwargs, call=own, before=before)
            if not result.not_measured:
                compiled.untouched.peak_bytes = result.untouched_peak_bytes
            return result

    def report(self) -> Report:
        """What was planned, oldest first."""
        found = tuple(self.compiled.values())
        plans, programs = tuple(c.plan for c in found), tuple(c.program for c in found)
        name = type(self.model).__name__
        untouched = tuple(c.untouched.peak_bytes for c in found)
        return Report(entry_label(name, self.method), self.budget_bytes, plans, programs, untouched)

    @property
    def slot(self) -> str:
        """The attribute of the instance that a patch belongs in now."""
        hooked = self.method == FORWARD and HOOK in self.model.__dict__ and HOOKED in self.model.__dict__
        return HOOKED if hooked else self.method

    @property
    def installed(self) -> bool:
        """Whether a call of the method reaches this state."""
        return self.model.__dict__.get(self.slot) == self._entry

    @contextlib.contextmanager
    def untouched(self) -> Iterator[Callable[..., Any]]:
        """A context in which this thread runs the model's own method, without hooks that move weights; gives that."""
        names = (HOOKED, HOOK) if self.method == FORWARD else (HOOK,)
        with self.turn.taken():
            before = self.own, self._untouched_in
            if not self._owns:
                self.own = self.model.__dict__.get(self.slot)
            self._untouched_in = threading.get_ident()
            try:
                with only_patch(self.model, self.method, self._entry, names):
                    yield self.own_method()
            finally:
                self.own, self._untouched_in = before

    def own_method(self) -> Callable[..., Any]:
        """What the live model runs where nothing is compiled."""
        own: Callable[..., Any] = self.own or getattr(type(self.model), self.method).__get__(self.model)
        return own

    def seen(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the attributes of the model its own method would see: our patches and hooks of accelerate go."""
        hooked = {HOOK, HOOKED, FORWARD} if HOOK in attributes else {HOOK, HOOKED}
        seen = {name: value for name, value in attributes.items() if name not in hooked and not _is_ours(value)}
        if self._owns:
            seen.pop(self.method, None)  # what is around the patch by now runs around it
        own = self.own if self._owns else attributes.get(self.slot)
        if own is not None and not _is_ours(own) and not _is_plain(own, self.model, self.method):
            seen[self.method] = own
        return seen

    def install(self) -> None:
        """Let the live model run by its plans."""
        self.own = self.model.__dict__.get(self.slot)
        self.model.__dict__[self.slot] = self._entry
        self._owns = True

    def uninstall(self) -> None:
        """Let the live model run its own method, as before."""
        with self.turn.taken():
            if streams(self.model):
                restore(self.model, self.home)
        self._owns = False
        attributes = self.model.__dict__
        for slot in (self.method, HOOKED):
            if attributes.get(slot) != self._entry:
                continue
            if self.own is not None and (slot == HOOKED or not _is_plain(self.own, self.model, self.method)):
                attributes[slot] = self.own
            elif slot == HOOKED:
                attributes[slot] = getattr(type(self.model), self.method).__get__(self.model)
            else:
                del attributes[slot]

    def __deepcopy__(self, memo: object) -> CompiledModule:
        """Refuse: a copy would run the weights of the model it was copied from."""
        raise BadInput("a compiled model can't be copied or pickled; call sicompiler.release(model) first")

    def __reduce__(self) -> str:
        """Refuse, as for copies."""
        return str(self.__deepcopy__({}))


def installed_state(model: torch.nn.Module, method: str = FORWARD) -> CompiledModule | None:
    """The state that owns a method of a live model; None where the model runs its own."""
    for slot in (method, HOOKED) if method == FORWARD else (method,):
        owner = getattr(model.__dict__.get(slot), "__self__", None)
        if isinstance(owner, CompiledModule) and owner.method == method:
            return owner
    return None


def _check_parts(model: torch.nn.Module) -> None:
    """Refuse a model of which a part is compiled on its own.

    Raises:
        BadInput: names the part.
    """
    for path, part in model.named_modules():
        if part is not model and any(map(_is_ours, part.__dict__.values())):
            raise BadInput(
                f"`{path}` of this {type(model).__name__} is compiled on its own, within a budget of its own: "
                "sicompiler.release it first, the plan of the whole model holds for it too"
            )


def _is_ours(value: Any) -> bool:
    return isinstance(value, types.MethodType) and isinstance(value.__self__, CompiledModule)


def _is_plain(function: Any, model: torch.nn.Module, method: str) -> bool:
    """Whether a function on the instance is nothing but the method of its class."""
    return isinstance(function, types.MethodType) and function == getattr(type(model), method).__get__(model)
