"""From a live model and the inputs of a call to a planner: capture and analysis, and what is asked of its weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sicompiler.capture import Program, capture, named_tensors, weights_bytes
from sicompiler.capture.decisions import Decide, decide_at_once
from sicompiler.capture.quantised import refusal, scheme_of
from sicompiler.compiler import Planner, make_planner
from sicompiler.cost import MACHINES
from sicompiler.entry import FORWARD, entry_label
from sicompiler.errors import BadInput
from sicompiler.passes.manager import Observer
from sicompiler.search.search import Progress


def device_type_of(model: torch.nn.Module) -> str:
    """Where the weights of a model are.

    Raises:
        BadInput: on several kinds of device, or on one that sicompiler does not know.
    """
    kinds = {tensor.device.type for tensor in named_tensors(model).values()} or {"cpu"}
    if len(kinds) > 1:
        raise BadInput(
            f"the weights are on several devices ({', '.join(sorted(kinds))}); move the model to one of them"
        )
    device_type = kinds.pop()
    if device_type not in MACHINES:
        raise BadInput(f"the weights are on device {device_type!r}; sicompiler runs on {' and '.join(MACHINES)}")
    return device_type


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


def prepare(
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

    Returns:
        The captured `Program` and its `Planner`.

    Raises:
        CaptureError: the model can't be traced.
    """
    began = time.perf_counter()
    if progress is not None:
        progress("capture", 0, 1)
    program = capture(model, args, kwargs, method=method, decide=decide)
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
    )
    return program, planner


def analyse(
    model: torch.nn.Module,
    program: Program,
    *,
    method: str = FORWARD,
    name: str | None = None,
    device_type: str | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    timings: dict[str, float] | None = None,
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
    """
    return make_planner(
        program,
        model=name or entry_label(type(model).__name__, method),
        weights_bytes=weights_bytes(model),
        dtype=dtype_name(model),
        device_type=device_type or device_type_of(model),
        progress=progress,
        observer=observer,
        timings=timings,
        phase="denoise" if method == FORWARD else method,
    )
