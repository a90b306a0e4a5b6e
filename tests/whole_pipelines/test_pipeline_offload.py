"""A pipeline far below its weights: idle components away, the running one streamed, the same frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sicompiler
from sicompiler.ops import is_offloaded
from tests.mini_pipeline import mini, picture
from tests.pipelines import PIPELINES, run

pytestmark = pytest.mark.usefixtures("cached")


def offload_floor(pipe: Any, call: Any) -> int:
    """The smallest budget that works: what each refusal names as the nearest, until a run goes through."""
    budget = 2**10
    for _ in range(10):
        sicompiler.compile_for_budget(pipe, f"{budget}B")
        try:
            call(pipe)
        except sicompiler.OverBudget as error:
            budget = error.floor_bytes
        else:
            return budget
    pytest.fail(f"{budget} is refused after naming it")


def device_floor(pipe: Any, call: Any) -> int:
    """The smallest budget with everything in the memory of the device."""
    sicompiler.compile_for_budget(pipe, 1)
    call(pipe)
    found = sicompiler.report(pipe).floor_bytes
    assert found is not None
    return int(found)


def generate(pipe: Any) -> torch.Tensor:
    return torch.as_tensor(pipe(picture()))


def offloaded_parts(pipe: Any) -> set[str]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name for name, part in parts.items() if any(map(is_offloaded, part.parameters()))}


@pytest.fixture(scope="module")
def floors(cached: None) -> tuple[int, int]:
    """Of the mini pipeline: the smallest budget that works, and the smallest with everything on the device."""
    pipe = mini()
    return offload_floor(pipe, generate), device_floor(pipe, generate)


def test_a_pipeline_runs_below_its_weights_with_the_same_frames(floors: tuple[int, int]) -> None:
    pipe = mini()
    reference = pipe(picture())
    low, near = floors
    assert low < near
    for budget in (low, (low + near) // 2, near - 1):
        sicompiler.compile_for_budget(pipe, f"{budget}B")
        for _ in range(2):
            assert float((pipe(picture()) - reference).abs().max()) <= 1e-12
        found = sicompiler.verify(pipe, ((picture(),), {}))
        assert found.max_rel_error <= 1e-12
        assert found.fits, str(found)
        assert all(row.measured_peak_bytes <= budget for row in found.phases)
    sicompiler.release(pipe)
    assert offloaded_parts(pipe) == set()
    assert torch.equal(pipe(picture()), reference)


@pytest.fixture
def squeezed(floors: tuple[int, int]) -> tuple[Any, torch.Tensor]:
    pipe, (low, near) = mini(), floors
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, f"{low + (near - low) // 4}B")
    return pipe, reference


def test_a_failure_in_the_middle_leaves_a_pipeline_that_works(
    squeezed: tuple[Any, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, reference = squeezed
    pipe(picture())
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.scheduler), "step", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe(picture())
    assert float((pipe(picture()) - reference).abs().max()) <= 1e-12


def test_weights_are_saved_as_they_are_wherever_they_lie(squeezed: tuple[Any, torch.Tensor], tmp_path: Path) -> None:
    pipe, _ = squeezed
    pipe(picture())
    assert offloaded_parts(pipe)
    pipe.save_pretrained(tmp_path / "far")
    sicompiler.release(pipe)
    pipe.save_pretrained(tmp_path / "near")
    names = sorted(p.relative_to(tmp_path / "near") for p in (tmp_path / "near").rglob("*.safetensors"))
    assert names
    for name in names:
        offloaded, near = load_file(tmp_path / "far" / name), load_file(tmp_path / "near" / name)
        assert offloaded.keys() == near.keys()
        assert all(torch.equal(offloaded[key], near[key]) for key in near)


def test_another_dtype_takes_the_weights_along(squeezed: tuple[Any, torch.Tensor]) -> None:
    pipe, _ = squeezed
    pipe(picture())
    pipe.to(torch.float32)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    assert pipe(picture().float()).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["StableVideoDiffusionPipeline", "AnimateDiffPipeline", "WanPipeline"])
def test_a_pipeline_of_diffusers_runs_at_its_floor(name: str) -> None:
    make, inputs = PIPELINES[name]
    pipe, call = make(torch.float64), inputs(torch.float64)
    frames = torch.as_tensor(run(pipe, call))
    low, near = offload_floor(pipe, lambda p: run(p, call)), device_floor(pipe, lambda p: run(p, call))
    assert low < near
    sicompiler.compile_for_budget(pipe, f"{low}B")
    found = sicompiler.verify(pipe, ((), {**call, "generator": torch.Generator().manual_seed(0)}))
    assert found.max_abs_error <= 4e-6
    assert found.fits, str(found)
    sicompiler.release(pipe)
    assert torch.equal(torch.as_tensor(run(pipe, call)), frames)
