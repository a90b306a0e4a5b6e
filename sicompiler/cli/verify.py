"""`sicompiler verify`."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sicompiler.api import prepare
from sicompiler.capture import weights_bytes
from sicompiler.capture.entry import bound_method
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress, note, quiet, show_json, show_text
from sicompiler.cli.work import find
from sicompiler.compiler.reserve import plan_reserving
from sicompiler.device import check_available, device_kind
from sicompiler.errors import BadInput
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.placement import place
from sicompiler.runtime.verify import compare
from sicompiler.units import format_bytes, parse_bytes

# What rounding can make of random weights, relative to the biggest output; more is a bug.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "float16": 3e-2, "bfloat16": 2e-1}


def run(options: ModelOptions, gb: str, *, as_json: bool) -> int:
    """Build a model with random weights, run it both ways, print what differs.

    Returns:
        1 if the outputs differ by more than rounding or the prediction was exceeded, else 0.

    Raises:
        OverBudget: no plan fits.
        BadInput: the model is too large for this machine.
    """
    budget_bytes = parse_bytes(gb)
    assert options.device is not None
    check_available(options.device, "verify runs the model")
    device = device_kind(options.device).torch_type
    is_function = ":" in options.model
    if not is_function:
        options = replace(options, dtype=options.dtype or "float32")
        check_memory(weights_bytes(find(options).call.module), options.model)
    with Progress() as progress:
        progress("random weights", 0, 1)
        call = find(options, fake=False).call
        model = call.module.to(device)
        args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), (call.args, call.kwargs))
        with quiet():
            _, planner = prepare(model, args, kwargs, progress=progress, method=call.method)
            plan = plan_reserving(planner, budget_bytes, offload=options.offloading)
            progress("running both", 0, 1)
            found = compare(
                model,
                Executable(planner.rewrite(plan), plan),
                args,
                kwargs,
                call=bound_method(model, call.method),
                before=lambda: place(model, plan.streamed, torch.device(device)),
            )
    tolerance = TOLERANCES.get(plan.dtype, 1e-4)
    equal = found.bitwise or found.max_rel_error <= tolerance
    if as_json:
        show_json(
            {
                "model": call.name,
                "dtype": plan.dtype,
                "device": device,
                **asdict(found),
                "fits": found.fits,
                "tolerance": tolerance,
                "equal": equal,
            }
        )
    else:
        weights = "its own weights" if is_function else "random weights"
        show_text(f"{call.name}, {plan.dtype}, {device}, {weights}\n{found}\n")
    if not equal:
        note(f"the outputs differ by more than rounding explains (relative {tolerance:g}): please report this bug")
    if not found.fits:
        note("the measured peak is above the predicted one: a bug of ours, please report it")
    return 0 if equal and found.fits else 1


def check_memory(needed_bytes: int, model: str) -> None:
    """Warn where the weights of a model take over half of the memory, refuse where they exceed what is available.

    Raises:
        BadInput: they do.
    """
    total, available = host_memory_bytes()
    if needed_bytes > available:
        raise BadInput(
            f"{model} has {format_bytes(needed_bytes)} of weights, but only {format_bytes(available)} of memory are "
            "available; take a smaller model or --dtype float16"
        )
    if needed_bytes > total / 2:
        note(f"{model} has {format_bytes(needed_bytes)} of weights, over half of this machine's {format_bytes(total)}")


def host_memory_bytes() -> tuple[int, int]:
    """Memory of this machine (or container), in total and available now."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = total
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total, available = min(total, int(text)), min(available, int(text))
    return total, available
