"""Everything that a GPU is asked, in under 8 minutes: `python -m benchmarks.gpu`.

    python -m benchmarks.gpu                                 # writes benchmarks/results/gpu-NAME.json
    python -m benchmarks.gpu --device cpu --rehearse --output FILE   # small models, to see that it runs

Rows are written one by one; run again, it goes on where it was interrupted. Weights are random. `allocated` and
`reserved` are all that torch has on the device, weights included, less the result that is kept to compare with.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import sicompiler
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.kernels import DTYPES, KERNELS, measured_workspace
from benchmarks.gpu.models import BUDGETS, MODELS, REHEARSED, LoadedModel
from sicompiler.calibration import measure_machine
from sicompiler.calibration.copies import computes_beside, copy_bandwidth
from sicompiler.device import default_device, device_kind
from sicompiler.machines import description_of
from sicompiler.units import MIB

RESULTS = Path(__file__).parents[1] / "results"
REHEARSAL_SCALE = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what there are no rows of yet, and print a summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", help="default: the accelerator of this machine")
    parser.add_argument("--minutes", type=float, default=8.0, help="no row is begun after that")
    parser.add_argument("--rehearse", action="store_true", help="small models and kernels, to see that it runs")
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *REHEARSED], help="default: all")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device) if options.device else default_device()
    description = description_of(device.type)
    name = description.partition(";")[0].partition(",")[0].lower().replace(" ", "-")
    machine = {"device": description, "torch": torch.__version__, "sicompiler": sicompiler.__version__}
    path = options.output or RESULTS / f"gpu-{name}.json"
    journal = Journal(path, {**machine, "rehearsed": options.rehearse}, options.minutes * 60)
    console = Console(stderr=True)
    _kernels(journal, device, REHEARSAL_SCALE if options.rehearse else 1, console)
    _machine(journal, device, console)
    models = REHEARSED if options.rehearse else MODELS
    for model in options.models or models:
        _model(journal, device, model, console)
    summary(journal, Console(width=150))


def _kernels(journal: Journal, device: torch.device, scale: int, console: Console) -> None:
    for name in KERNELS:
        for dtype in DTYPES:
            row = f"kernel {name} {str(dtype).removeprefix('torch.')}"
            console.print(row)
            journal.row(row, lambda name=name, dtype=dtype: measured_workspace(name, dtype, device, scale))  # type: ignore[misc]


def _machine(journal: Journal, device: torch.device, console: Console) -> None:
    console.print("calibration")
    journal.row("calibration", lambda: asdict(measure_machine(device, lambda *_: None)))
    if device_kind(device).can_offload:
        console.print("copies")
        journal.row("copies", lambda: _copies(device))


def _copies(device: torch.device) -> dict[str, Any]:
    overlaps = device_kind(device).has_streams and computes_beside(device)
    return {"bytes_per_second": copy_bandwidth(device), "overlaps": overlaps}


def _model(journal: Journal, device: torch.device, name: str, console: Console) -> None:
    """Rows of one model, which is built when the first of them is missing, and gone afterwards."""
    loaded: list[LoadedModel] = []

    def model() -> LoadedModel:
        if not loaded:
            loaded.append(LoadedModel({**MODELS, **REHEARSED}[name], device))
        return loaded[0]

    console.print(f"{name}: eager")
    journal.row(f"model {name} eager", lambda: model().eager())
    for budget, row in BUDGETS.items():
        console.print(f"{name}: {budget}")
        journal.row(f"model {name} {budget}", lambda row=row: model().compiled(row))  # type: ignore[misc]
    loaded.clear()
    gc.collect()


def summary(journal: Journal, console: Console) -> None:
    """Print models by budget, then the kernels whose workspace was more than predicted, or far less."""
    table = Table(title="MiB on the device, weights included", title_justify="left")
    for column in ("model", "budget", "predicted", "allocated", "reserved", "seconds", "of eager", "error", "holds"):
        table.add_column(column, justify="left" if column == "model" else "right")
    eager: dict[str, float] = {}
    for name, row in journal.rows.items():
        if not name.startswith("model "):
            continue
        if "error" in row:
            table.add_row(name.removeprefix("model "), row["error"][:80])
            continue
        model = name.split()[1]
        eager[model] = row["seconds"] if name.endswith("eager") else eager.get(model, float("nan"))
        sizes = ("budget_bytes", "predicted_bytes", "allocated_bytes", "reserved_bytes")
        table.add_row(
            name.removeprefix("model "),
            *(f"{row[key] / MIB:.1f}" if row.get(key) is not None else "-" for key in sizes),
            f"{row['seconds']:.4f}",
            f"{row['seconds'] / eager[model]:.3f}",
            "-" if "bitwise" not in row else "bitwise" if row["bitwise"] else f"{row['max_rel_error']:.1e}",
            "-" if "holds" not in row else "yes" if row["holds"] else "NO",
        )
    console.print(table)
    kernels = Table(title="workspace of kernels, MiB: above the prediction, or below half of it", title_justify="left")
    for column in ("kernel", "measured", "predicted", "operands and results"):
        kernels.add_column(column, justify="left" if column == "kernel" else "right")
    for name, row in journal.rows.items():
        if not name.startswith("kernel "):
            continue
        if "error" in row:
            kernels.add_row(name, row["error"][:80])
        elif not row["predicted_bytes"] / 2 - MIB <= row["measured_bytes"] <= row["predicted_bytes"]:
            kernels.add_row(
                name.removeprefix("kernel "),
                *(f"{row[key] / MIB:.2f}" for key in ("measured_bytes", "predicted_bytes", "tensor_bytes")),
            )
    console.print(kernels)


if __name__ == "__main__":
    main()
