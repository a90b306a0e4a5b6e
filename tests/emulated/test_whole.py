"""Whole pipelines, and the benchmark for GPUs, on the emulated device."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sicompiler
from benchmarks.gpu.__main__ import main
from tests.emulated import accelerator
from tests.emulated.product import EMU, peaks, register
from tests.pipelines import PIPELINES, run

CLOSE = 1e-5  # in float32


@pytest.fixture(autouse=True)
def row() -> None:
    """The compiler knows the device."""
    register()


@pytest.mark.parametrize("name", ["LTXPipeline", "WanPipeline"])
def test_a_pipeline_is_right_and_within_its_budget(name: str) -> None:
    make, call = PIPELINES[name]
    wanted = torch.as_tensor(run(make(torch.float32), call(torch.float32)))
    pipe: Any = make(torch.float32).to(EMU)
    with peaks() as untouched:
        run(pipe, call(torch.float32))
    accelerator.configure(races="raise", poison=True)
    budget = int(0.6 * untouched.allocated)
    sicompiler.compile_for_budget(pipe, f"{budget}B")
    run(pipe, call(torch.float32))  # all components lie there at first
    gc.collect()
    with peaks() as measured:
        frames = torch.as_tensor(run(pipe, call(torch.float32))).cpu()
    assert float((frames - wanted).abs().max()) < CLOSE
    assert measured.allocated <= budget
    sicompiler.release(pipe)


def test_the_benchmark_for_gpus_is_rehearsed(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    main(["--device", accelerator.NAME, "--rehearse", "--models", "residual", "--output", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    models = {name: row for name, row in rows.items() if name.startswith("model ")}
    assert len(models) == 5
    assert all(row.get("holds", True) for row in models.values())
    assert {"calibration", "copies"} <= rows.keys()
