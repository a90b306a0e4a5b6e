"""The public functions: compile, report, verify, release."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import capture, flatten_inputs, named_tensors, weights_bytes
from sicompiler.compiler import Planner, Progress, make_planner, rewrite
from sicompiler.cost import MACHINES
from sicompiler.entry import FORWARD
from sicompiler.errors import BadInput, NotCompiled
from sicompiler.passes.manager import Observer
from sicompiler.plan import Plan
from sicompiler.reports.report import Report
from sicompiler.runtime.compiled import Compiled, call_key, check_inference
from sicompiler.runtime.verify import Verification, compare
from sicompiler.units import format_bytes, format_seconds, parse_bytes

log = logging.getLogger("sicompiler")

Model = TypeVar("Model", bound=torch.nn.Module)
Inputs = tuple[Sequence[Any], Mapping[str, Any]]


def device_type_of(model: torch.nn.Module) -> str:
    """Where the weights of a model are.

    Raises:
        BadInput: on several kinds of device, or on one that sicompiler does not know.
    """
    types = {tensor.device.type for tensor in named_tensors(model).values()} or {"cpu"}
    if len(types) > 1:
        raise BadInput(
            f"the weights are on several devices ({', '.join(sorted(types))}); move the model to one of them"
        )
    found = types.pop()
    if found not in MACHINES:
        raise BadInput(f"the weights are on device {found!r}; sicompiler runs on {' and '.join(MACHINES)}")
    return found


def dtype_name(model: torch.nn.Module) -> str:
    """The dtype that most weights of a model have, e.g. "float16"."""
    counts: dict[torch.dtype, int] = {}
    for tensor in named_tensors(model).values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    found = max(counts, key=lambda dtype: counts[dtype], default=torch.get_default_dtype())
    return str(found).removeprefix("torch.")


def prepare(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    name: str | None = None,
    device_type: str | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    method: str = FORWARD,
) -> tuple[Any, Planner]:
    """Capture and analyse a model: everything up to choosing a plan.

    Args:
        model: the model, not compiled.
        args: positional example inputs.
        kwargs: keyword example inputs.
        name: of the model, for people.
        device_type: plan for this kind of device instead of the one the model is on.
        progress: told about long work.
        observer: shown every stage.
        method: the entry point: the name of the method that is called.

    Returns:
        The captured `Program` and its `Planner`.

    Raises:
        CaptureError: the model can't be traced.
    """
    began = time.perf_counter()
    if progress is not None:
        progress("capture", 0, 1)
    program = capture(model, args, kwargs, method=method)
    captured = time.perf_counter() - began
    if observer is not None:
        observer("captured", program)
    planner = make_planner(
        program,
        model=name or type(model).__name__,
        weights_bytes=weights_bytes(model),
        dtype=dtype_name(model),
        device_type=device_type or device_type_of(model),
        progress=progress,
        observer=observer,
        timings={"capture": captured},
        phase="denoise" if method == FORWARD else method,
    )
    return program, planner


class State:
    """What sicompiler keeps for one compiled model."""

    def __init__(self, model: torch.nn.Module, budget_bytes: int, plan: Plan | None, progress: Progress | None) -> None:
        self._model = weakref.ref(model)
        self.budget_bytes, self.given_plan, self.progress = budget_bytes, plan, progress
        self.own_forward: Callable[..., Any] | None = model.__dict__.get("forward")  # of the instance, not the class
        self.compiled: dict[Hashable, Compiled] = {}
        self.last: tuple[Compiled, Inputs] | None = None
        self._lock = threading.RLock()

    @property
    def model(self) -> torch.nn.Module:
        """The live model."""
        model = self._model()
        assert model is not None
        return model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model by the plan for this input shape, planning first where there is none yet."""
        check_inference(args, kwargs)
        compiled = self.compiled_for(args, kwargs)
        return compiled.run(self.model, flatten_inputs(args, kwargs)[0])

    def compiled_for(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Compiled:
        """The rewritten model for a call; planned now if need be."""
        key = call_key(self.model, args, kwargs)
        with self._lock:
            found = self.compiled.get(key)
            if found is None:
                if self.compiled:
                    log.warning("%s: new input shapes or weights, planning again", type(self.model).__name__)
                found = self.compile(args, kwargs)
                self.compiled[key] = found
            self.last = (found, _specs(args, kwargs))
        return found

    def compile(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Compiled:
        """Capture, plan and rewrite for the shapes of a call; the live model is left alone."""
        with self.untouched():
            if self.given_plan is not None:
                program = capture(self.model, args, kwargs)
                plan, self.given_plan = self.given_plan, None
            else:
                program, planner = prepare(self.model, args, kwargs, progress=self.progress)
                plan = planner.plan(self.budget_bytes)
        compiled = Compiled(rewrite(program, plan), plan)
        log.info(
            "%s: %d regions, predicted peak %s of %s, planned in %s",
            plan.model,
            len(plan.regions),
            format_bytes(plan.predicted_peak_bytes),
            format_bytes(plan.budget_bytes),
            format_seconds(sum(plan.timings.values())),
        )
        return compiled

    def untouched(self) -> _Untouched:
        """A context in which the live model runs its own forward."""
        return _Untouched(self)

    def install(self) -> None:
        """Let the live model run by its plans."""
        self.model.forward = self.forward

    def uninstall(self) -> None:
        """Let the live model run its own forward, as before."""
        if self.own_forward is not None:
            self.model.forward = self.own_forward
        else:
            self.model.__dict__.pop("forward", None)

    def __deepcopy__(self, memo: object) -> State:
        """Refuse: a copy would run the weights of the model it was copied from."""
        raise BadInput("a compiled model can't be copied or pickled; call sicompiler.release(model) first")

    def __reduce__(self) -> str:
        """Refuse, as for copies."""
        return str(self.__deepcopy__({}))


class _Untouched:
    def __init__(self, state: State) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.installed = self.state.model.__dict__.get("forward") == self.state.forward
        if self.installed:
            self.state.uninstall()

    def __exit__(self, *error: object) -> None:
        if self.installed:
            self.state.install()


def _specs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
    """The inputs without their data: tensors as meta tensors, so that nothing of the caller's is kept alive."""
    specs: Inputs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (tuple(args), dict(kwargs)))
    return specs


def compile_for_budget(
    model: Model,
    gb: float | str = 11,
    *,
    example_inputs: Inputs | None = None,
    plan: Plan | str | Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Make a model run inside a memory budget, with the same output. In place.

    Args:
        model: any module that `torch.export` can trace.
        gb: the budget: a number of GiB, or a string with a unit ("11GB", "10.5GiB"). It bounds the weights resident
            on the device plus everything the run allocates there.
        example_inputs: `(args, kwargs)` of a call. Given, the model is planned now and errors come now; otherwise at
            the first call. Every new input shape gets a plan of its own.
        plan: a plan made earlier (a `Plan`, or the path of its JSON), used for the first shape that is planned.
        progress: called as `progress(what, done, total)` during long work.

    Returns:
        The same model.

    Raises:
        BadInput: the budget or the model makes no sense.
        CaptureError: the model can't be traced.
        OverBudget: no plan fits; names the floor and the operator that sets it.
        StalePlan: the given plan was made for another model, shape or version.
    """
    if not isinstance(model, torch.nn.Module):
        raise BadInput(
            f"compile_for_budget takes a torch.nn.Module, got {type(model).__name__}; "
            "of a pipeline, pass its unet or transformer"
        )
    budget = parse_bytes(gb)
    device_type_of(model)
    if isinstance(plan, (str, Path)):
        plan = Plan.from_json(Path(plan).read_text())
    previous = _installed(model)
    if previous is not None:
        previous.uninstall()
    try:
        state = State(model, budget, plan, progress)
        if example_inputs is not None:
            args, kwargs = example_inputs
            state.compiled_for(tuple(args), dict(kwargs))
    except BaseException:
        if previous is not None:
            previous.install()
        raise
    state.install()
    return model


def _installed(model: torch.nn.Module) -> State | None:
    """The state of a compiled model: whoever owns the forward of the instance."""
    owner = getattr(model.__dict__.get("forward"), "__self__", None)
    return owner if isinstance(owner, State) else None


def _state(model: torch.nn.Module, verb: str) -> State:
    state = _installed(model) if isinstance(model, torch.nn.Module) else None
    if state is None:
        raise NotCompiled(
            f"can't {verb} this {type(model).__name__}: it was never compiled, or something replaced its forward "
            "since; call compile_for_budget first"
        )
    return state


def release(model: torch.nn.Module) -> None:
    """Undo `compile_for_budget` exactly.

    Raises:
        NotCompiled: the model was never compiled.
    """
    _state(model, "release").uninstall()


def report(model: torch.nn.Module) -> Report:
    """What was planned for a compiled model: printable; `.plan`, `.to_json()`, `.to_html(path)`.

    Raises:
        NotCompiled: the model was never compiled.
    """
    state = _state(model, "report on")
    found = tuple(state.compiled.values())
    return Report(
        type(model).__name__, state.budget_bytes, tuple(c.plan for c in found), tuple(c.program for c in found)
    )


def verify(model: torch.nn.Module, example_inputs: Inputs | None = None) -> Verification:
    """Run a compiled model once against the untouched model.

    Args:
        model: a compiled model.
        example_inputs: `(args, kwargs)`; random tensors of the last planned shapes if not given.

    Returns:
        The biggest errors and the measured peaks of both.

    Raises:
        NotCompiled: the model was never compiled.
        BadInput: nothing was planned yet, and no inputs are given.
    """
    state = _state(model, "verify")
    if example_inputs is None:
        if state.last is None:
            raise BadInput("nothing is planned yet: pass example_inputs=(args, kwargs), or call the model once")
        example_inputs = _random(state.last[1], next(iter(named_tensors(model).values()), torch.empty(0)).device)
    args, kwargs = example_inputs
    compiled = state.compiled_for(tuple(args), dict(kwargs))
    with state.untouched():
        return compare(model, compiled, args, kwargs)


def _random(specs: Inputs, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def fill(spec: torch.Tensor) -> torch.Tensor:
        if spec.is_floating_point():
            return torch.randn(spec.shape, generator=generator, dtype=torch.float32).to(device, spec.dtype)
        return torch.zeros(spec.shape, dtype=spec.dtype, device=device)

    inputs: Inputs = pytree.tree_map_only(torch.Tensor, fill, specs)
    return inputs
