"""Which figures of a device the cost model takes: those measured on this machine, else the round ones of its row.

`sicompiler calibrate` measures; a JSON file a device lies in the user's data folder, or in that which the environment
variable SICOMPILER_CALIBRATION names ("off" for none).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_data_path

from sicompiler.codec import Malformed, decode, read_object
from sicompiler.device import Device, Machine, descriptions, device_kind

log = logging.getLogger("sicompiler")

VARIABLE = "SICOMPILER_CALIBRATION"
OFF = frozenset({"off", "none", "0", "false"})
_WIDTHS = (
    "flops",
    "conv_flops",
    "temporal_flops",
    "attention_flops",
)  # by bytes per element, which JSON writes as text

_read: dict[Path, tuple[float, Machine | None]] = {}  # by file: when it was written, and what it holds


@dataclass(frozen=True)
class MachineFile:
    """The figures of a device, as they lie in a file.

    Attributes:
        device: the kind of device.
        description: of the device and of what computes on it; another one is not this device.
        torch_version: what measured.
        measured: when, as a date.
        figures: fields of `Machine` that are numbers.
        rates: floating point operations per second: by field of `Machine`, then by bytes per element.
        offload_overlaps: as of `Machine`.
    """

    device: str
    description: str
    torch_version: str
    measured: str
    figures: Mapping[str, float]
    rates: Mapping[str, Mapping[str, float]]
    offload_overlaps: bool

    @classmethod
    def of(cls, device: str, machine: Machine, measured: str) -> MachineFile:
        """What is written of a machine that was measured here."""
        values = asdict(machine)
        figures = {f.name: values[f.name] for f in fields(Machine) if isinstance(values[f.name], float | int)}
        overlaps = bool(figures.pop("offload_overlaps"))
        rates = {name: {str(width): rate for width, rate in values[name].items()} for name in _WIDTHS}
        return cls(device, description_of(device), str(torch.__version__), measured, figures, rates, overlaps)

    def machine(self) -> Machine:
        """The machine; what was not measured is as in the row of the device.

        Raises:
            Malformed: a figure is none that a machine has, or no positive number.
        """
        known = {f.name for f in fields(Machine)}
        rows = [("figures", self.figures), *((f"rates.{name}", rates) for name, rates in self.rates.items())]
        for path, numbers in rows:
            for name, value in numbers.items():
                if value <= 0 or (path == "figures" and name not in known):
                    raise Malformed(f"{path}.{name} is {value}")
        if self.rates.keys() != set(_WIDTHS) or "4" not in self.rates["flops"]:
            raise Malformed(f"rates holds {', '.join(sorted(self.rates)) or 'nothing'}")
        changes: dict[str, Any] = dict(self.figures)
        for name, by_width in self.rates.items():
            changes[name] = {int(width): rate for width, rate in by_width.items()}
        row, source = device_kind(self.device).machine, f"measured {self.measured}"
        return replace(row, **changes, offload_overlaps=self.offload_overlaps, source=source)


def machine_of(device_type: str) -> Machine:
    """What the cost model knows of a kind of device: as measured on this machine, else the round figures of its row.

    Raises:
        BadInput: there is no such kind.
    """
    row = device_kind(device_type).machine
    device_type = device_kind(device_type).torch_type
    path = calibration_path(device_type)
    if path is None:
        return row
    try:
        written = path.stat().st_mtime
    except OSError:
        return row
    if device_type != Device.CPU and not descriptions():
        return row  # planned for a device that is not here: the file is of an earlier one
    if _read.get(path, (None,))[0] != written:
        _read[path] = (written, _load(path, device_type))
    return _read[path][1] or row


def _load(path: Path, device_type: str) -> Machine | None:
    try:
        file = decode(MachineFile, read_object(path.read_text(encoding="utf-8")))
        here = description_of(device_type)
        if (file.device, file.description) != (device_type, here):
            log.warning("%s is of another device (%s; this is %s): not used", path, file.description, here)
            return None
        return file.machine()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        log.warning("%s can't be used: %s. `sicompiler calibrate` writes it anew", path, error)
        return None


def save_machine(device_type: str, machine: Machine, measured: str) -> Path | None:
    """Keep the figures of a device.

    Args:
        device_type: the kind of device.
        machine: as measured.
        measured: when, as a date.

    Returns:
        Where; None where SICOMPILER_CALIBRATION switches it off.

    Raises:
        OSError: the folder can't be written.
    """
    path = calibration_path(device_type)
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(MachineFile.of(device_type, machine, measured)), indent=1)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(file.name, path)
    return path


def calibration_path(device_type: str) -> Path | None:
    """Where the figures of a kind of device lie, or would; None where calibration is switched off."""
    named = os.environ.get(VARIABLE, "")
    if named.lower() in OFF:
        return None
    folder = Path(named).expanduser() if named else user_data_path("sicompiler", appauthor=False) / "machines"
    return folder / f"{device_type}.json"


def description_of(device_type: str) -> str:
    """What the figures of a device depend on: the device, and on a CPU how many threads compute."""
    if device_type == Device.CPU:
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{platform.machine()} {capability}, {torch.get_num_threads()} threads of {os.cpu_count()}"
    return "; ".join(descriptions()) or f"no {device_type} device"
