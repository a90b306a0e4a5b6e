"""Tiny models in every dtype: what a plan predicts is what a run needs."""

from __future__ import annotations

import pytest
import torch

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.runtime.measure import measure_peak
from sicompiler.units import MIB
from tests.zoo import method_of, tiny

SLACK_BYTES = 2**12  # numbers and tables of a kernel, which no prediction counts
CLOSENESS = 1.05  # where the peak is over 1 MiB


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A UNet with every kind of layer in bfloat16; in float32 a decoder for its convolutions, a transformer for attention.
QUICK = (("svd", torch.bfloat16), ("sd-vae", torch.float32), ("ltx-video", torch.float32))
REST = [(name, dtype) for name in ("svd", "animatediff") for dtype in DTYPES if (name, dtype) not in QUICK]


@pytest.mark.parametrize(("name", "dtype"), [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in REST)])
def test_the_predicted_peak_is_the_measured_one(name: str, dtype: torch.dtype) -> None:
    module, args, kwargs = tiny(name, dtype=dtype)
    _, planner = prepare(module, args, kwargs, method=method_of(name))
    low, high = planner.floor()[0], planner.unsliced_bytes
    for budget in (high, max(low, high // 2), low):
        plan = planner.plan(budget)
        done = planner.rewrite(plan)
        with torch.no_grad(), measure_peak("cpu") as peak:
            testing.run_program(done, module, args, kwargs)
        found = peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes
        predicted = plan.predicted_peak_bytes
        assert found <= predicted + SLACK_BYTES, f"{found} measured, {predicted} predicted"
        assert predicted <= budget
        if found - plan.weights_bytes > MIB:
            assert predicted <= CLOSENESS * found, f"{found} measured, {predicted} predicted"
