"""The public functions: compile, report, verify, release. Of a module, or of a whole diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, overload

import torch

from sicompiler.cache.store import default_store
from sicompiler.compiled_module import CompiledModule, installed_state
from sicompiler.compiler.planner import Offload
from sicompiler.compiler.prepare import check_weights, device_type_of, dtype_name, prepare
from sicompiler.compiler.search import Progress
from sicompiler.errors import BadInput, NotCompiled
from sicompiler.ops.mapped import offload_folder
from sicompiler.pipelines.budget import budget_of
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.pipeline import CompiledPipeline, is_pipeline, pipeline_state
from sicompiler.pipelines.rehash.calibrate import calibrate
from sicompiler.pipelines.reserved import ATTRIBUTE
from sicompiler.pipelines.supported import SupportedPipeline, supported_pipelines
from sicompiler.pipelines.verify import PipelineVerification
from sicompiler.plan import Plan
from sicompiler.planners.registry import Solver, chosen_planner
from sicompiler.rehash.request import Rehash
from sicompiler.renamed import refuses_renamed
from sicompiler.reports.phases import PipelineReport
from sicompiler.reports.rehash import RehashReport
from sicompiler.reports.report import Report
from sicompiler.runtime.call import Call
from sicompiler.runtime.examples import Inputs, checked_inputs
from sicompiler.runtime.verify import Verification
from sicompiler.turns import executing

__all__ = [
    "SupportedPipeline",
    "compile_for_budget",
    "device_type_of",
    "dtype_name",
    "prepare",
    "rehash_report",
    "release",
    "report",
    "supported_pipelines",
    "verify",
]


class Pipeline(Protocol):
    """What a diffusers pipeline is to us: components by name, and a call."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Models, schedulers, tokenizers by name."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate."""
        ...


Model = TypeVar("Model", bound=torch.nn.Module | Pipeline)


@refuses_renamed
def compile_for_budget(  # noqa: PLR0913  # what a user may say
    model: Model,
    gb: float | str | None = None,
    *,
    example_inputs: Inputs | None = None,
    plan: Plan | str | Path | None = None,
    planner: str | Solver = "dp",
    offload: Offload = "auto",
    rehash: Rehash | None = None,
    progress: Progress | None = None,
    cache: bool = True,
) -> Model:
    """Make a model or a whole diffusers pipeline run inside a memory budget, with the same output. In place.

    Args:
        model: any module that `torch.export` can trace, or a diffusers pipeline. Of a pipeline, the denoiser, both
            directions of the VAE and the encoders are planned, each at its first call, under one budget.
        gb: the budget: a number of GiB, or a string with a unit ("11GB", "10.5GiB"). It bounds the weights resident
            on the device plus everything the run allocates there. None takes what is free on the model's device now
            (what torch has there included) less a margin of 512 MiB; on a CPU, 11 GiB.
        example_inputs: `(args, kwargs)` of a call of a module. Given, the model is planned now and errors come now;
            otherwise at the first call. Every new input shape gets a plan of its own.
        plan: a plan made earlier for a module (a `Plan`, or the path of its JSON), used for the first shape that is
            planned. It has to be within the budget.
        planner: what chooses among the regions that fit: "dp" takes the fastest, "greedy" is the baseline it is held
            against, "exhaustive" the oracle for tiny graphs; or one of your own, by the name it is registered by
            (`register_planner`) or as a function (`Solver`).
        offload: where nothing else fits, "auto" spills values to offload memory and streams weights from there, with
            the same output: pinned host memory for a CUDA device, a memory-mapped file for the CPU (in the folder that
            the environment variable SICOMPILER_OFFLOAD_DIR names now, else in the system's temporary one). "none" keeps
            everything on the device.
        rehash: of a pipeline, and approximate: reuse a feature of the denoiser on some steps (docs/rehash.md). None
            leaves the output what it is.
        progress: called as `progress(what, done, total)` during long work.
        cache: keep captured programs and plans on disk, so that the next process with the same model, code and inputs
            captures and searches nothing; in the user's cache folder, or in that which the environment variable
            SICOMPILER_CACHE names ("off" for none).

    Returns:
        The same model or pipeline.

    Raises:
        BadInput: the budget or the model makes no sense, or no more than the margin is free; or there is no such
            planner, or it returns no plan of the graph that is within the budget.
        CaptureError: the model can't be traced.
        OffloadError: there is no room to offload to.
        OverBudget: no plan fits; names the floor and the operator that sets it.
        StalePlan: the given plan was made for another model, shape, machine or version, or is broken.
    """
    if offload not in get_args(Offload):
        raise BadInput(f"offload is one of {', '.join(get_args(Offload))}, got {offload!r}")
    offload_folder(fix=True)
    store, chosen = default_store() if cache else None, chosen_planner(planner)
    if is_pipeline(model):
        if example_inputs is not None or plan is not None:
            raise BadInput(
                "example_inputs and plan belong to one module; a pipeline is planned component by component, "
                "each at its first call"
            )
        budget = budget_of(model, gb)
        state = partial(CompiledPipeline.take_over, model, budget, progress, offload, rehash, store, chosen)
        _compile_pipeline(model, rehash, state)
        return model
    if rehash is not None:
        raise BadInput("rehash belongs to a pipeline: its steps are what is skipped; a single module has none")
    if not isinstance(model, torch.nn.Module):
        raise BadInput(
            f"compile_for_budget takes a torch.nn.Module or a diffusers pipeline, got {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise BadInput(
            f"this {type(model).__name__} of torch.jit runs past Python; compile the module that it was made from"
        )
    check_weights(model)
    device_type_of(model)
    budget, given = budget_of(model, gb), _loaded(plan)
    module = partial(CompiledModule, model, budget, given, progress, offload=offload, store=store, planner=chosen)
    _take_over(model, module, example_inputs)
    return model


def _compile_pipeline(model: Any, rehash: Rehash | None, make: Callable[[], CompiledPipeline]) -> None:
    """Take a pipeline over, and calibrate Step Rehash where it has calls for that; it is as it was where that fails.

    Args:
        model: the pipeline.
        rehash: what of Step Rehash is wanted.
        make: takes it over.
    """
    before = found if isinstance(found := model.__dict__.get(ATTRIBUTE), CompiledPipeline) else None
    state = make()
    if rehash is None or not rehash.calls:
        return
    try:
        calibrate(state)
    except BaseException:
        state.release()
        if before is not None:
            before.install(model)
        raise


def _loaded(plan: Plan | str | Path | None) -> Plan | None:
    """A plan, read from its file if need be."""
    if isinstance(plan, (str, Path)):
        return Plan.load(plan)
    if plan is not None and not isinstance(plan, Plan):
        raise BadInput(f"plan is a Plan or the path of one, got {type(plan).__name__}")
    return plan


def _take_over(model: torch.nn.Module, make: Callable[[], CompiledModule], example_inputs: Inputs | None) -> None:
    """Plan the call that was given, if any, and run the model by plans from now on; it is as it was where that fails.

    Args:
        model: what to take over.
        make: makes its state, once it is what it was before it was ever compiled.
        example_inputs: of the call to plan.
    """
    previous = installed_state(model)
    if isinstance(previous, CompiledComponent) and previous.tenants.any_alive:
        raise BadInput(f"{_belongs(previous)}, whose budget holds for it: compile that again, or release it first")
    if previous is not None:
        previous.uninstall()
    try:
        module = make()
        if example_inputs is not None:
            args, kwargs = checked_inputs(example_inputs)
            with module.turn.taken(), executing():
                module.compiled_for(Call.of(model, tuple(args), dict(kwargs)))
    except BaseException:
        if previous is not None:
            previous.install()
        raise
    module.install()


def _belongs(state: CompiledComponent) -> str:
    return f"this {type(state.model).__name__} is the {state.role.component} of a compiled {state.pipeline.name}"


def _state(model: torch.nn.Module, verb: str) -> CompiledModule:
    state = installed_state(model) if isinstance(model, torch.nn.Module) else None
    if state is None:
        raise NotCompiled(
            f"can't {verb} this {type(model).__name__}: it was never compiled, or something replaced its forward "
            "since; call compile_for_budget first"
        )
    return state


def release(model: torch.nn.Module | Pipeline) -> None:
    """Undo `compile_for_budget` exactly.

    Raises:
        NotCompiled: the model was never compiled.
    """
    if isinstance(model, torch.nn.Module):
        state = _state(model, "release")
        if isinstance(state, CompiledComponent) and state.tenants.any_alive:
            raise NotCompiled(f"{_belongs(state)} and was not compiled on its own: release the pipeline")
        state.uninstall()
    else:
        pipeline_state(model, "release").release()


@overload
def report(model: torch.nn.Module) -> Report: ...
@overload
def report(model: Pipeline) -> PipelineReport: ...
def report(model: torch.nn.Module | Pipeline) -> Report | PipelineReport:
    """What was planned for a compiled model: printable; `.plan`, `.to_json()`, `.to_html(path)`.

    Of a pipeline: one row a phase, `.phases`, `.to_json()`, and the report of each component in `.components`.

    Raises:
        NotCompiled: the model was never compiled.
    """
    if not isinstance(model, torch.nn.Module):
        return pipeline_state(model, "report on").report()
    return _state(model, "report on").report()


@overload
def verify(model: torch.nn.Module, example_inputs: Inputs | None = None) -> Verification: ...
@overload
def verify(model: Pipeline, example_inputs: Inputs | None = None) -> PipelineVerification: ...
def verify(
    model: torch.nn.Module | Pipeline, example_inputs: Inputs | None = None
) -> Verification | PipelineVerification:
    """Run a compiled model once against the untouched model.

    Args:
        model: a compiled model or pipeline.
        example_inputs: `(args, kwargs)` of a call. If not given, random tensors of the last planned shapes; of a
            pipeline, every component is then compared on its own.

    Returns:
        The biggest errors and the measured peaks of both.

    Raises:
        NotCompiled: the model was never compiled.
        BadInput: nothing was planned yet, and no inputs are given.
    """
    if not isinstance(model, torch.nn.Module):
        return pipeline_state(model, "verify").verify(example_inputs)
    return _state(model, "verify").verify(example_inputs)


def rehash_report(pipe: Pipeline) -> RehashReport:
    """What Step Rehash did in the newest call of a pipeline: printable; `.plan`, `.evaluations`.

    Raises:
        NotCompiled: the pipeline was never compiled, or without `rehash`.
    """
    state = pipeline_state(pipe, "report on")
    if state.rehash is None:
        raise NotCompiled(
            f"this {state.name} was compiled without Step Rehash; call compile_for_budget with rehash=Rehash(...)"
        )
    return state.rehash.report()
