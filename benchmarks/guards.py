"""What guards cost: a repeated call of SVD's full UNet, 1,500 modules built without memory from their configuration.

`python -m benchmarks.guards` writes benchmarks/results/guards.json: milliseconds of a repeated call and of the first
description, in seconds of this thread, so that a busy machine counts for little; and the share of a full-width call,
whose seconds are those of benchmarks/results/svd-256x448-float32.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sicompiler.guards import ModuleGuards
from sicompiler.zoo.build import construct, preset_named

RESULTS = Path(__file__).parent / "results"
FULL_WIDTH = RESULTS / "svd-256x448-float32.json"
LIMIT_MILLISECONDS, LIMIT_SHARE = 5.0, 0.01


def milliseconds(action: Callable[[], Any], rounds: int) -> list[float]:
    """Thread time of each of some rounds."""
    rows = []
    for _ in range(rounds):
        began = time.thread_time()
        action()
        rows.append((time.thread_time() - began) * 1e3)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="svd")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS / "guards.json")
    options = parser.parse_args(sys.argv[1:])
    preset = preset_named(options.preset)
    with torch.device("meta"):
        model = construct(preset.class_name, preset.config, torch.float32)
    guards = ModuleGuards()
    (described,) = milliseconds(lambda: guards.key(model), 1)
    calls = milliseconds(lambda: guards.key(model), options.rounds)
    scale = next(child for child in model.modules() if "processor" in vars(child))
    scale.scaling = {"adapter": 1.0}
    guards.key(model)

    def changed() -> None:
        scale.scaling["adapter"] += 1.0
        guards.key(model)

    seconds = min(row["seconds"] for row in json.loads(FULL_WIDTH.read_text())["rows"] if row["seconds"])
    median = statistics.median(calls)
    report = {
        "preset": options.preset,
        "modules": sum(1 for _ in model.modules()),
        "facts": len(guards.facts),
        "milliseconds": median,
        "fastest_milliseconds": min(calls),
        "described_milliseconds": described,
        "changed_milliseconds": statistics.median(milliseconds(changed, 5)),
        "share_of_a_full_width_call": median / 1e3 / seconds,
        "full_width_seconds": seconds,
        "holds": median <= LIMIT_MILLISECONDS and median / 1e3 <= LIMIT_SHARE * seconds,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "python -m benchmarks.guards",
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("what", "value", title="guards")
    for name, value in report.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
