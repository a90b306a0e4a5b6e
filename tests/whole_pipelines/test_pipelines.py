"""Whole pipelines of diffusers, tiny and with random weights: the same frames at three budgets, and never above them.

Everything runs in float64; frames leave a pipeline as float32, and transformers compute rotary embeddings and time
steps in float32 whatever their dtype. So frames in [0, 1] may differ by a few roundings of float32.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sicompiler
from tests.pipeline_parts import quiet
from tests.pipelines import PIPELINES, run

pytestmark = pytest.mark.usefixtures("cached")

TOLERANCE = 4e-6
QUICK = ("AnimateDiffPipeline",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in PIPELINES])
def test_a_pipeline_gives_the_same_frames_within_three_budgets(name: str) -> None:
    make, inputs = PIPELINES[name]
    pipe, call = make(torch.float64), inputs(torch.float64)
    frames = torch.as_tensor(run(pipe, call))
    assert bool(((frames > 0) & (frames < 1)).all())  # clipped frames would be equal whatever is computed
    assert float(frames.std()) > 1e-3
    sicompiler.compile_for_budget(pipe, 1)
    assert float((torch.as_tensor(run(pipe, call)) - frames).abs().max()) <= TOLERANCE
    report = sicompiler.report(pipe)
    low, high = report.floor_bytes, report.predicted_peak_bytes
    row = next(row for row in sicompiler.supported_pipelines() if row.label == name)
    planned = {r.component for r in report.phases if not r.note}
    assert planned >= set(row.tested)
    assert planned | {r.component for r in report.phases if r.note} == {*row.tested, *row.untouched}
    for budget in dict.fromkeys((high, (low + high) // 2, low)):
        sicompiler.compile_for_budget(pipe, f"{budget}B")
        found = sicompiler.verify(pipe, ((), {**call, "generator": torch.Generator().manual_seed(0)}))
        assert found.max_abs_error <= TOLERANCE
        assert found.fits, str(found)
        assert found.measured_peak_bytes <= budget
        assert all(r.measured_peak_bytes <= budget for r in found.phases)
    assert low == high or found.measured_peak_bytes < found.untouched_peak_bytes
    sicompiler.release(pipe)
    assert torch.equal(torch.as_tensor(run(pipe, call)), frames)


def test_every_supported_pipeline_is_tested_here() -> None:
    rows = sicompiler.supported_pipelines()
    assert {row.label for row in rows} == set(PIPELINES)
    assert len({row.label for row in rows}) == len(rows)
    assert all(row.tested for row in rows)


@pytest.mark.slow
def test_svd_loaded_in_half_precision_upcasts_its_vae_and_inspects_its_forward(tmp_path: Path) -> None:
    """float16 weights are encoded in float32 (`force_upcast`), decoded in float16, with `num_frames` by inspection."""
    from diffusers import StableVideoDiffusionPipeline

    make, inputs = PIPELINES["StableVideoDiffusionPipeline"]
    make(torch.float32).save_pretrained(tmp_path / "saved")
    pipe = quiet(StableVideoDiffusionPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16))
    call = inputs(torch.float16)
    frames = torch.as_tensor(run(pipe, call))
    sicompiler.compile_for_budget(pipe, 1)
    ours = torch.as_tensor(run(pipe, call))
    assert float((ours - frames).abs().max()) <= 2e-2  # float16 decodes to 11 bits
    plans = {name: report.plan for name, report in sicompiler.report(pipe).components.items()}
    assert plans["vae.encode"].dtype == "float32"
    assert plans["vae.decode"].dtype == "float16"
    assert plans["vae.encode"].weights_bytes == 2 * plans["vae.decode"].weights_bytes
    assert pipe.vae.dtype == torch.float16
    low = sicompiler.report(pipe).floor_bytes
    sicompiler.compile_for_budget(pipe, f"{low}B")
    found = sicompiler.verify(pipe, ((), {**call, "generator": torch.Generator().manual_seed(0)}))
    assert found.fits, str(found)
    assert found.max_abs_error <= 2e-2
    pipe.save_pretrained(tmp_path / "again")
    again = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "again", torch_dtype=torch.float16)
    assert torch.equal(torch.as_tensor(run(quiet(again), call)), frames)
