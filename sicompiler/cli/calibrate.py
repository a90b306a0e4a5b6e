"""`sicompiler calibrate`: measure this machine, and keep the figures for every plan from then on."""

from __future__ import annotations

import datetime
import time
from dataclasses import asdict

import torch

from sicompiler.calibration import measure_machine
from sicompiler.cli.output import Progress, note, quiet, show_json, show_text
from sicompiler.device import Device, Machine, check_available, default_device, device_kind
from sicompiler.errors import SicompilerError
from sicompiler.machines import VARIABLE, calibration_path, description_of, save_machine


def run(device_name: Device | None, *, as_json: bool) -> int:
    """Measure a device, keep what was found, print it beside the round figures.

    Raises:
        BadInput: there is no such device here.
        SicompilerError: the figures can't be written.
    """
    name = default_device().type if device_name is None else device_name.value
    check_available(name, "calibrate measures the device")
    name = device_kind(name).torch_type
    began = time.perf_counter()
    note(f"measuring {name}: {description_of(name)}. Best while nothing else runs")
    with Progress() as progress, quiet():
        machine = measure_machine(torch.device(name), progress)
    seconds = time.perf_counter() - began
    if not as_json:
        show_text(table(device_kind(name).machine, machine) + "\n")
    try:
        path = save_machine(name, machine, datetime.date.today().isoformat())
    except OSError as error:
        raise SicompilerError(
            f"the figures can't be kept in {calibration_path(name)}: {error.strerror}; {VARIABLE} names another folder"
        ) from error
    if as_json:
        show_json({"device": name, "seconds": seconds, "path": None if path is None else str(path), **asdict(machine)})
        return 0
    kept = f"kept in {path}" if path else f"not kept: {VARIABLE} is off"
    show_text(f"measured in {seconds:.0f} s; {kept}\n")
    return 0


def table(row: Machine, measured: Machine) -> str:
    """Round figures and measured ones, a line each."""
    lines = [f"{'':38}{'round figure':>14}{'measured':>14}"]
    before, after = asdict(row), asdict(measured)
    for name, value in after.items():
        if isinstance(value, dict):
            for width, rate in sorted(value.items()):
                old = before[name].get(width, before["flops"].get(width))
                lines.append(f"{name + f', {width} bytes an element':38}{old:14.3g}{rate:14.3g}")
        elif isinstance(value, bool):
            lines.append(f"{name:38}{before[name]!s:>14}{value!s:>14}")
        elif isinstance(value, int | float):
            lines.append(f"{name:38}{before[name]:14.3g}{value:14.3g}")
    return "\n".join(lines)
