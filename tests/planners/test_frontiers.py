"""The frontier of every preset at full size: budgets against peaks and times, down to the floor with offloading.

A change of rules, planner or cost model shows here as a difference of numbers to be read before it is committed:
`pytest tests/planners/test_frontiers.py -m "slow or not slow" --update-golden` writes the tables anew (about ten
minutes).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sicompiler.cli.frontier import frontier
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import Progress
from sicompiler.cli.work import find, prepare
from sicompiler.device import Device
from sicompiler.zoo.presets import PRESETS

QUICK = ("sd-vae", "svd-vae")
NAMES = sorted(PRESETS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_the_frontier_of_a_preset(name: str, golden: Callable[[str, str], None]) -> None:
    with Progress() as progress:
        _, planner = prepare(find(ModelOptions(name, device=Device.CUDA)), progress)
        rows = frontier(planner, progress, "auto")
    on_device, offloaded = planner.floor(), planner.floor("auto")
    lines = [
        f"{name}, {planner.dtype}, cuda; MiB, weights included",
        f"weights {planner.weights_bytes / 2**20:.1f}, unsliced {planner.unsliced_bytes / 2**20:.1f}",
        f"floor {on_device[0] / 2**20:.1f}, set by {on_device[1]}",
        f"floor with offloading {offloaded[0] / 2**20:.1f}, set by {offloaded[1]}",
        "",
        f"{'budget':>10} {'predicted':>10} {'time':>6} {'regions':>7}",
    ]
    for row in rows:
        assert row.predicted_peak_bytes <= row.budget_bytes
        budget, predicted = row.budget_bytes / 2**20, row.predicted_peak_bytes / 2**20
        lines.append(f"{budget:10.1f} {predicted:10.1f} {row.time_ratio:6.2f} {row.regions:7d}")
    golden(f"frontier_{name}", "\n".join(lines) + "\n")
