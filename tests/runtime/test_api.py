"""The public functions: what they promise, how they fail, and that a failure leaves the model as it was."""

from __future__ import annotations

import copy
import gc
import importlib
import logging
import math
import pickle
import re
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.api import prepare
from sicompiler.units import parse_bytes

KIB = 1024


class Block(nn.Module):
    """A gated feed-forward with a residual, over 96 tokens."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        value, gate = self.up(self.norm(x)).chunk(2, -1)
        return {"out": x + self.down(value * nn.functional.gelu(gate)) * scale}


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 96, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tight(model: nn.Module, x: torch.Tensor) -> str:
    """The budget at the floor, as a string with a unit."""
    _, planner = prepare(model, (x,), {})
    return f"{planner.floor()[0]}B"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-12 * b.abs().max())


def test_compiles_in_place_and_returns_its_argument(block: Block, x: torch.Tensor) -> None:
    reference = block(x)["out"]
    assert sicompiler.compile_for_budget(block, tight(block, x), example_inputs=((x,), {})) is block
    plan = sicompiler.report(block).plan
    assert plan is not None
    assert plan.regions or plan.outer
    assert same(block(x)["out"], reference)
    found = sicompiler.verify(block, ((x,), {}))
    assert found.max_rel_error <= 1e-12
    assert found.fits
    assert found.measured_peak_bytes < found.untouched_peak_bytes


def test_plans_at_the_first_call_when_no_inputs_are_given(block: Block, x: torch.Tensor) -> None:
    reference = block(x)["out"]
    sicompiler.compile_for_budget(block, gb=1)
    assert sicompiler.report(block).plan is None
    assert same(block(x)["out"], reference)
    assert sicompiler.report(block).plan is not None


@pytest.mark.parametrize("gb", [0, -1, math.nan, math.inf, "11 parsecs", "", "GB", True, [11]], ids=lambda gb: repr(gb))
def test_senseless_budgets_are_refused(block: Block, gb: Any) -> None:
    before = block.forward
    with pytest.raises(sicompiler.BadInput, match=r"gb|size|unit"):
        sicompiler.compile_for_budget(block, gb)
    assert block.forward == before
    assert "forward" not in block.__dict__


@pytest.mark.pure
@pytest.mark.parametrize(
    ("text", "nbytes"),
    [(11, 11 * 2**30), ("11GB", 11 * 10**9), ("10.5GiB", int(10.5 * 2**30)), ("2", 2 * 2**30), ("512 MiB", 2**29)],
)
def test_budgets_are_read_by_their_unit(text: float | str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


def test_over_budget_names_a_floor_that_works(block: Block, x: torch.Tensor) -> None:
    with pytest.raises(sicompiler.OverBudget, match="the floor is") as caught:
        sicompiler.compile_for_budget(block, "40KiB", example_inputs=((x,), {}))
    assert caught.value.culprit in str(caught.value)
    assert caught.value.budget_bytes == 40 * KIB
    assert "forward" not in block.__dict__
    sicompiler.compile_for_budget(block, f"{caught.value.floor_bytes}B", example_inputs=((x,), {}))
    assert sicompiler.verify(block, ((x,), {})).fits


class OutsideOfTorch(nn.Module):
    """Computes with numpy, which no trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() + 1)


def test_a_module_that_does_not_export_is_told_where(x: torch.Tensor) -> None:
    model = OutsideOfTorch().eval()
    with pytest.raises(sicompiler.CaptureError, match=r"test_api\.py") as caught:
        sicompiler.compile_for_budget(model, example_inputs=((x,), {}))
    assert "OutsideOfTorch" in str(caught.value)
    assert "forward" not in model.__dict__
    assert model(x).shape == x.shape


def test_a_module_that_writes_into_its_buffers_is_refused(x: torch.Tensor) -> None:
    model = nn.BatchNorm1d(96).double().train()
    with pytest.raises(sicompiler.CaptureError, match="writes into"):
        sicompiler.compile_for_budget(model, example_inputs=((x,), {}))


def test_a_new_shape_is_planned_once_and_said_once(
    block: Block, x: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    longer = torch.cat([x, x], dim=1)
    with caplog.at_level(logging.WARNING, "sicompiler"):
        first, second = block(longer)["out"], block(longer)["out"]
    ours = [record.message for record in caplog.records if record.name == "sicompiler"]
    assert len(ours) == 1
    assert re.fullmatch(
        r"Block: planned again in \S+ \w+, as new input shapes \(2, 96, 16\) -> \(2, 192, 16\)", ours[0]
    )
    assert len(sicompiler.report(block).plans) == 2
    sicompiler.release(block)
    assert same(first, block(longer)["out"])
    assert torch.equal(first, second)


def test_a_plan_is_saved_loaded_and_refused_elsewhere(block: Block, x: torch.Tensor, tmp_path: Path) -> None:
    sicompiler.compile_for_budget(block, tight(block, x), example_inputs=((x,), {}))
    plan = sicompiler.report(block).plan
    assert plan is not None
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert sicompiler.Plan.from_json(path.read_text()) == plan
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}), plan=path)
    assert sicompiler.report(block).plan == plan
    other = Block(24).double().eval()
    with pytest.raises(sicompiler.StalePlan, match="fingerprint"):
        sicompiler.compile_for_budget(other, gb=1, example_inputs=((torch.cat([x, x[..., :8]], -1),), {}), plan=path)
    assert "forward" not in other.__dict__
    with pytest.raises(sicompiler.StalePlan, match="fingerprint"):
        sicompiler.compile_for_budget(block, gb=1, example_inputs=((x[:, :7],), {}), plan=path)


@pytest.mark.pure
@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 99}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(sicompiler.StalePlan):
        sicompiler.Plan.from_json(text)


def test_an_exception_in_a_run_frees_its_buffers_and_the_next_call_is_right(
    block: Block, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = block(x)["out"]
    sicompiler.compile_for_budget(block, tight(block, x), example_inputs=((x,), {}))
    buffers: list[weakref.ref[torch.Tensor]] = []

    def fail(body: object, size: int, slice_length: int, *operands: torch.Tensor) -> None:
        known = {t.data_ptr() for t in (x, *block.parameters())}
        buffers.extend(weakref.ref(t) for t in operands if t.data_ptr() not in known)
        raise RuntimeError("in the middle")

    state = block.__dict__["forward"].__self__
    graph = next(iter(state.compiled.values())).program.graph_module
    monkeypatch.setitem(graph.forward.__globals__, "sicompiler_ops_sliced_loop", fail)
    with pytest.raises(RuntimeError, match="in the middle") as caught:
        block(x)
    assert buffers
    assert all(buffer() is None for buffer in buffers), caught.value  # although the exception is still held
    monkeypatch.undo()
    assert same(block(x)["out"], reference)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: m.load_state_dict(Block().double().state_dict(), assign=True), id="assigned"),
        pytest.param(lambda m: m.up.weight.data.mul_(2), id="in place"),
        pytest.param(lambda m: setattr(m.up, "weight", nn.Parameter(m.up.weight * 3)), id="replaced"),
        pytest.param(lambda m: setattr(m, "up", nn.Linear(16, 128, bias=False).double()), id="other structure"),
    ],
)
def test_changed_weights_are_followed(block: Block, x: torch.Tensor, change: Callable[[nn.Module], Any]) -> None:
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    before = block(x)["out"]
    change(block)
    after = block(x)["out"]
    sicompiler.release(block)
    assert same(after, block(x)["out"])
    assert not same(after, before)


def test_another_dtype_is_planned_again(block: Block, x: torch.Tensor) -> None:
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    block.float()
    ours = block(x.float())["out"]
    sicompiler.release(block)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, block(x.float())["out"], rtol=1e-5, atol=1e-6)


def test_compiling_twice_takes_the_new_budget(block: Block, x: torch.Tensor) -> None:
    original = block.forward
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    sicompiler.compile_for_budget(block, gb=2, example_inputs=((x,), {}))
    assert sicompiler.report(block).budget_bytes == 2 * 2**30
    with pytest.raises(sicompiler.OverBudget):
        sicompiler.compile_for_budget(block, "1KiB", example_inputs=((x,), {}))
    assert sicompiler.report(block).budget_bytes == 2 * 2**30
    sicompiler.release(block)
    assert block.forward == original
    assert "forward" not in block.__dict__


def test_release_restores_a_forward_of_the_instance(block: Block, x: torch.Tensor) -> None:
    def own(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    block.forward = own  # type: ignore[method-assign, assignment]
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    assert torch.equal(block(x), x + 1)
    sicompiler.release(block)
    assert block.__dict__["forward"] is own


@pytest.mark.parametrize("verb", [sicompiler.release, sicompiler.report, sicompiler.verify])
def test_what_was_never_compiled(block: Block, verb: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(sicompiler.NotCompiled, match="compile_for_budget first"):
        verb(block)


@pytest.mark.pure
def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(sicompiler.BadInput, match=r"takes a torch\.nn\.Module"):
        sicompiler.compile_for_budget("unet", gb=1)  # type: ignore[type-var]


def test_what_is_no_plan_nor_the_path_of_one_is_refused(block: Block) -> None:
    with pytest.raises(sicompiler.BadInput, match="plan is a Plan or the path of one, got int"):
        sicompiler.compile_for_budget(block, plan=3)  # type: ignore[arg-type]


def test_a_device_that_is_not_known_is_refused() -> None:
    with pytest.raises(sicompiler.BadInput, match="meta"):
        sicompiler.compile_for_budget(Block().to("meta"), gb=1)


def test_gradients_are_refused(block: Block, x: torch.Tensor) -> None:
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    with pytest.raises(sicompiler.BadInput, match="release"):
        block(x.clone().requires_grad_())
    assert not block(x)["out"].requires_grad


def test_python_values_and_keywords_are_part_of_the_call(block: Block, x: torch.Tensor) -> None:
    reference = block(x, scale=0.5)["out"]
    sicompiler.compile_for_budget(block, gb=1)
    assert same(block(x, scale=0.5)["out"], reference)
    assert not same(block(x=x, scale=2.0)["out"], reference)


def test_threads_share_a_compiled_model(block: Block, x: torch.Tensor) -> None:
    """Planned before: torch.export, by which a new shape is planned, patches modules in the whole process."""
    reference = block(x)["out"]
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(block(x)["out"])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(same(one, reference) for one in found)
    assert len(sicompiler.report(block).plans) == 1


def test_a_released_model_can_be_copied(block: Block, x: torch.Tensor) -> None:
    sicompiler.compile_for_budget(block, gb=1, example_inputs=((x,), {}))
    sicompiler.release(block)
    assert torch.equal(copy.deepcopy(block)(x)["out"], block(x)["out"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps], ids=["copied", "pickled"])
def test_a_compiled_model_is_not_duplicated(block: Block, duplicate: Callable[[nn.Module], Any]) -> None:
    sicompiler.compile_for_budget(block, gb=1)
    with pytest.raises(sicompiler.BadInput, match="release"):
        duplicate(block)


def test_a_compiled_model_is_not_kept_alive(x: torch.Tensor) -> None:
    model = Block().double().eval()
    sicompiler.compile_for_budget(model, gb=1, example_inputs=((x,), {}))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((torch.ones(2),), "tuple of Tensor"),
        (torch.ones(2), "Tensor"),
        (((), ()), "tuple of tuple, tuple"),
        ((), "noth"),
    ],
    ids=["only positional", "a tensor", "no mapping", "empty"],
)
def test_example_inputs_that_are_no_pair_are_told(given: Any, shown: str) -> None:
    model = Block()
    with pytest.raises(sicompiler.BadInput, match=rf"pair \(\(positional, \.\.\.\), .* got a .*{shown}"):
        sicompiler.compile_for_budget(model, "1 GiB", example_inputs=given)
    assert "forward" not in vars(model)
    sicompiler.compile_for_budget(model, "1 GiB")
    with pytest.raises(sicompiler.BadInput, match="example_inputs is a pair"):
        sicompiler.verify(model, given)


def test_a_module_meets_the_compiler_within_twelve_calls_and_no_pipeline_on_the_way(
    block: Block, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way a reader of the code goes: nested calls of our own functions, from the public one to the planner."""
    own = importlib.import_module("sicompiler.compiled_module")
    ways: list[list[str]] = []
    prepare = own.prepare

    def seen(*args: Any, **kwargs: Any) -> Any:
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_stack(sys._getframe(1))]
        ways.append([name for name in modules if name.startswith("sicompiler.")])
        return prepare(*args, **kwargs)

    monkeypatch.setattr(own, "prepare", seen)
    sicompiler.compile_for_budget(block, 1, example_inputs=((x,), {}))
    (way,) = ways
    assert len(way) <= 12, way
    assert not [name for name in way if name.startswith("sicompiler.pipelines")]
