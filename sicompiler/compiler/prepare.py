"""From a live model and the inputs of a call to a planner: capture and analysis, and what is asked of its weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sicompiler.cache.known import KnownPrograms
from sicompiler.cache.store import Store
from sicompiler.capture import Program, capture, flatten_inputs, named_tensors, weights_bytes
from sicompiler.capture.decisions import Decide, decide_at_once, numbers_in, outcome_of
from sicompiler.capture.entry import FORWARD, entry_label
from sicompiler.capture.quantised import refusal, scheme_of
from sicompiler.compiler.planner import Planner, make_planner
from sicompiler.compiler.search import Progress
from sicompiler.device import device_kinds, planned_kind
from sicompiler.errors import BadInput
from sicompiler.guards import ModuleGuards
from sicompiler.guards.durable import constants_of
from sicompiler.ops import is_offloaded
from sicompiler.passes.manager import Observer
from sicompiler.planners.candidates import Regions


@dataclass(frozen=True)
class Captured:
    """The program of a call.

    Attributes:
        program: captured now, or by an earlier process.
        digest: of it, where it has a form in a file.
        call: what tells the call from others, the code of the model included; "" where that means nothing elsewhere.
    """

    program: Program
    digest: str | None
    call: str


def device_type_of(model: torch.nn.Module) -> str:
    """The kind of device that a model is planned for: where its weights are.

    Raises:
        BadInput: on several kinds of device, or on one that sicompiler does not know.
    """
    resident = [tensor for tensor in named_tensors(model).values() if not is_offloaded(tensor)]  # a plan streams others
    kinds = {tensor.device.type for tensor in resident} or {"cpu"}
    if len(kinds) > 1:
        raise BadInput(
            f"the weights are on several devices ({', '.join(sorted(kinds))}); move the model to one of them"
        )
    device_type = kinds.pop()
    if device_type not in device_kinds():
        raise BadInput(f"the weights are on device {device_type!r}; sicompiler runs on {', '.join(device_kinds())}")
    return planned_kind(device_type)


def check_weights(model: torch.nn.Module) -> None:
    """Refuse a model whose weights are quantised.

    Raises:
        BadInput: they are; names the scheme.
    """
    scheme = scheme_of(model)
    if scheme:
        raise BadInput(refusal(type(model).__name__, scheme))


def dtype_name(model: torch.nn.Module) -> str:
    """The dtype that most weights of a model have, e.g. "float16"."""
    counts: dict[torch.dtype, int] = {}
    for tensor in named_tensors(model).values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    dtype = max(counts, key=lambda dtype: counts[dtype], default=torch.get_default_dtype())
    return str(dtype).removeprefix("torch.")


def prepare(  # noqa: PLR0913  # a call, and what a caller may watch or give
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    method: str = FORWARD,
    name: str | None = None,
    device_type: str | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    decide: Decide = decide_at_once,
    store: Store | None = None,
    guards: ModuleGuards | None = None,
) -> tuple[Program, Planner]:
    """Capture and analyse a model: everything up to choosing a plan.

    Args:
        model: the model, not compiled.
        args: positional example inputs.
        kwargs: keyword example inputs.
        method: which of its methods.
        name: of the model, for people.
        device_type: plan for this kind of device instead of the one the model is on.
        progress: told about long work.
        observer: shown every stage.
        decide: runs what the model decides by, see `capture`.
        store: where programs and plans of earlier processes lie; None to capture and search here.
        guards: of the model, where they are kept.

    Returns:
        The captured `Program` and its `Planner`.

    Raises:
        CaptureError: the model can't be traced.
    """
    began = time.perf_counter()
    if progress is not None:
        progress("capture", 0, 1)
    found = captured_program(model, args, kwargs, method=method, decide=decide, store=store, guards=guards)
    program, digest = found.program, found.digest
    captured = time.perf_counter() - began
    if observer is not None:
        observer("captured", program)
    planner = analyse(
        model,
        program,
        method=method,
        name=name,
        device_type=device_type,
        progress=progress,
        observer=observer,
        timings={"capture": captured},
        store=store if digest is not None else None,
        digest=digest,
        call=found.call,
    )
    return program, planner


def captured_program(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    method: str = FORWARD,
    decide: Decide = decide_at_once,
    store: Store | None = None,
    guards: ModuleGuards | None = None,
) -> Captured:
    """The program of a call: that of an earlier process, if it is known, or captured now and kept.

    Args:
        model: the model, not compiled.
        args: positional example inputs.
        kwargs: keyword example inputs.
        method: which of its methods.
        decide: runs what the model decides by, see `capture`.
        store: where programs lie; None to capture.
        guards: of the model, where they are kept.

    Raises:
        CaptureError: the model can't be traced.
    """
    known = None if store is None else KnownPrograms(store, method)
    key = None
    if known is not None:
        guards = guards or ModuleGuards(methods=(method,))
        key = known.key(model, guards, args, kwargs)
        for program, digest in () if key is None else known.find(key, constants_of(guards.facts)):
            if _decides_alike(model, program, args, kwargs, decide):
                return Captured(program, digest, key or "")
    program = capture(model, args, kwargs, method=method, decide=decide)
    return Captured(program, None if known is None or key is None else known.keep(key, program), key or "")


def _decides_alike(
    model: torch.nn.Module, program: Program, args: Sequence[Any], kwargs: Mapping[str, Any], decide: Decide
) -> bool:
    """Whether what a program was decided by comes out the same for a call."""
    if not program.decided:
        return True
    tensors, leaves = named_tensors(model), flatten_inputs(args, kwargs)[0]
    for one in program.decided:
        result = decide(one.decision, one.decision.program.arguments_of(tensors, leaves))
        if outcome_of(numbers_in(result)) != one.outcome:
            return False
    return True


def analyse(  # noqa: PLR0913  # as `make_planner`, which it calls
    model: torch.nn.Module,
    program: Program,
    *,
    method: str = FORWARD,
    name: str | None = None,
    device_type: str | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    timings: dict[str, float] | None = None,
    store: Store | None = None,
    digest: str | None = None,
    call: str = "",
    regions: Regions | None = None,
) -> Planner:
    """Analyse a program of a model: one that was captured, or a part of such.

    Args:
        model: the model, all of whose weights stay on the device.
        program: what runs of it.
        method: which of its methods.
        name: of the model, for people.
        device_type: plan for this kind of device instead of the one the model is on.
        progress: told about long work.
        observer: shown every stage.
        timings: seconds spent before.
        store: where plans of earlier processes lie.
        digest: of the program, where that is known.
        call: what tells the call from others, the code of the model included.
        regions: what grew in programs that are like this one; it is added to.
    """
    return make_planner(
        program,
        model=name or entry_label(type(model).__name__, method),
        weights_bytes=weights_bytes(model, device_type),
        dtype=dtype_name(model),
        device_type=device_type or device_type_of(model),
        progress=progress,
        observer=observer,
        timings=timings,
        phase="denoise" if method == FORWARD else method,
        store=store,
        digest=digest,
        call=call,
        regions=regions,
    )
