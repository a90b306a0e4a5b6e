"""Offload memory: values spilled and weights streamed give the same output, within what was predicted for the device.

Here the device is the CPU, whose offload memory is a mapped file: what lies there is not torch's, so no peak counts it.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sicompiler
from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.capture import flatten_inputs, named_tensors, weights_bytes
from sicompiler.compiled_module import installed_state
from sicompiler.compiler.planner import rewrite
from sicompiler.compiler.search import graph_offloading, spillable
from sicompiler.errors import OffloadError, OverBudget
from sicompiler.ops import (
    fetch,
    fetch_slice,
    is_offloaded,
    offloaded_tensor,
    sliced_loop,
    spill,
    store_slice_,
    streamed_loop,
)
from sicompiler.ops import mapped as mapped_files
from sicompiler.plan import Plan
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.placement import streams
from sicompiler.runtime.verify import errors
from tests.exact.test_random_graphs import SLACK_BYTES, check_same, check_text, measured
from tests.random_choices import Choose, for_choices, seeded
from tests.zoo import prepared

CPU = torch.device("cpu")
TOLERANCES = {"wan2.1-1.3b": 2e-6, "cogvideox-2b": 2e-6, "ltx-vae": 2e-6, "wan-vae": 2e-6, "mochi": 2e-6}


@pytest.fixture(autouse=True)
def nothing_stays_mapped() -> Iterator[None]:
    """Every mapped file goes with the last tensor in it, whatever happened."""
    before = len(mapped_files._mapped)
    yield
    if len(mapped_files._mapped) > before:
        gc.collect()  # a compiled model and its state refer to each other
    assert len(mapped_files._mapped) <= before


# --- the operators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [(30, 5, 1), (1, 4, 24), (5, 20, 1)])
def test_a_whole_value_comes_back_as_it_went(stride: tuple[int, ...]) -> None:
    on_device = torch.empty_strided((4, 6, 5), stride).normal_()
    offloaded = spill(on_device)
    assert is_offloaded(offloaded)
    assert not is_offloaded(on_device)
    back = fetch(offloaded, CPU)
    assert not is_offloaded(back)
    assert back.stride() == on_device.stride()
    assert torch.equal(back, on_device)


@pytest.mark.parametrize(("dim", "outer", "inner"), [(0, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 5)])
def test_slices_are_those_of_a_loop_without_offloading(dim: int, outer: int, inner: int) -> None:
    on_device = torch.randn(4, 12, 10)
    offloaded = spill(on_device)
    copy = torch.ops.sicompiler.copy_slice(on_device, dim, outer, inner, 1, 1)
    assert torch.equal(fetch_slice(offloaded, dim, outer, inner, 1, 1, CPU), copy)
    store_slice_(offloaded, 2 * copy, dim, outer, inner, 1, 1)
    torch.ops.sicompiler.write_slice_(on_device, 2 * copy, dim, outer, inner, 1, 1)
    assert torch.equal(offloaded, on_device)


@pytest.mark.parametrize("slice_length", [1, 2, 4, 7])
def test_a_streamed_loop_computes_what_a_sliced_loop_does(slice_length: int) -> None:
    x, on_device = torch.randn(7, 3), torch.empty(7, 3)
    source, target = spill(x), offloaded_tensor([7, 3], [3, 1], torch.float32, CPU)
    alive: list[int] = []

    def body(part: torch.Tensor, start: int, length: int) -> tuple[torch.Tensor]:
        alive.append(part.shape[0])
        return (part.sin(),)

    def load(whole: torch.Tensor, start: int, length: int) -> tuple[torch.Tensor]:
        return (fetch_slice(whole, 0, 1, 1, start, length, CPU),)

    def save(part: torch.Tensor, whole: torch.Tensor, start: int, length: int) -> None:
        store_slice_(whole, part, 0, 1, 1, start, length)

    def plain(start: int, length: int) -> None:
        on_device[start : start + length] = x[start : start + length].sin()

    streamed_loop(body, load, save, 7, slice_length, CPU, [source], [target], [])
    sliced_loop(plain, 7, slice_length)
    assert torch.equal(target, on_device)
    assert sum(alive) == 7


def test_an_empty_value_needs_no_file() -> None:
    assert offloaded_tensor([0, 3], [3, 1], torch.float32, CPU).shape == (0, 3)


def test_a_missing_folder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SICOMPILER_OFFLOAD_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(OffloadError, match=r"in .*nowhere: No such file.*SICOMPILER_OFFLOAD_DIR"):
        spill(torch.ones(3))


def full_disk(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Let the disk be full once so many files are there."""
    left = [after]

    def allocate(file: int, offset: int, nbytes: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", lambda file, offset, nbytes: allocate(file, offset, nbytes))
    monkeypatch.setattr(mmap, "mmap", _grown)


def _grown(file: int, nbytes: int) -> Any:
    os.ftruncate(file, nbytes)
    return _MMAP(file, nbytes)


_MMAP = mmap.mmap


def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    with pytest.raises(OffloadError, match=r"can't map a file of 0 MiB in .*No space left"):
        spill(torch.ones(3))


# --- random graphs ---------------------------------------------------------------------------------------------------


def test_any_values_may_lie_far_in_any_regions() -> None:
    def check(choose: Choose) -> None:
        module, args, kwargs = testing.draw_module(choose, seeded(choose, 1, 6))
        graph = testing.legal_graph(module, args, kwargs)
        offloaded = frozenset(s for s in sorted(spillable(graph)) if choose((True, False)))
        graph = graph_offloading(graph, offloaded)
        regions = testing.draw_regions(graph, choose, hoisted_bytes=(2**20,))
        program = testing.rewritten(graph, regions)
        check_same(program, module, args, kwargs)
        check_text(program.graph_module)
        found, predicted = measured(program, graph, module, args, kwargs), testing.predicted_peak(graph, regions)
        assert found <= predicted + SLACK_BYTES, f"measured {found}, predicted {predicted}"

    for_choices(check, seeds=20, deep=240)


def test_plans_with_offloading_keep_the_output_and_fit() -> None:
    def check(choose: Choose) -> None:
        scale = choose((testing.SMALL, testing.LARGE))
        module, args, kwargs = testing.draw_module(choose, seeded(choose, 1, 6), scale=scale)
        program, planner = prepare(module, args, kwargs)
        low, resident = planner.floor("auto")[0], planner.floor()[0]
        assert low <= resident
        for budget in dict.fromkeys((low, (low + resident) // 2, resident)):
            plan = planner.plan(budget, offload="auto")
            assert plan.fits
            assert Plan.from_json(plan.to_json()) == plan
            assert budget < resident or not plan.uses_offload  # nothing is spilled that fits
            done = rewrite(program, plan)
            check_same(done, module, args, kwargs)
            check_text(done.graph_module)
            found = measured(done, planner.graph, module, args, kwargs) + plan.weights_bytes
            assert found <= plan.predicted_peak_bytes + SLACK_BYTES

    for_choices(check, seeds=13, deep=150)


# --- real models -----------------------------------------------------------------------------------------------------


QUICK = ("svd", "wan2.1-1.3b", "sd-vae")
SLOW = ("animatediff", "modelscope", "cogvideox-2b", "mochi", "svd-vae", "ltx-vae", "wan-vae")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_model_is_exact_below_its_floor(name: str, share: float) -> None:
    (module, args, kwargs), _, planner, theirs = prepared(name)
    low, resident = planner.floor("auto")[0], planner.floor()[0]
    assert low < 0.75 * resident
    plan = planner.plan(low + int(share * (resident - low)), offload="auto")
    assert plan.uses_offload
    compiled = Executable(planner.rewrite(Plan.from_json(plan.to_json())), plan)
    flat = flatten_inputs(args, kwargs)[0]
    with measure_peak("cpu") as peak:
        ours = compiled.run(module, flat)
    assert errors(ours, theirs)[1] <= TOLERANCES.get(name, 1e-12)
    found = peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes
    assert found <= plan.predicted_peak_bytes + SLACK_BYTES <= plan.budget_bytes + SLACK_BYTES
    assert plan.predicted_peak_bytes <= 1.05 * found


def test_without_offloading_the_floor_is_the_end() -> None:
    _, _, planner, _ = prepared("svd")
    with pytest.raises(OverBudget, match="offloading is not allowed"):
        planner.plan(planner.floor()[0] - 1)
    with pytest.raises(OverBudget, match="with offloading") as caught:
        planner.plan(planner.floor("auto")[0] - 1, offload="auto")
    assert caught.value.floor_bytes == planner.floor("auto")[0]


def test_more_room_means_fewer_bytes_carried() -> None:
    _, _, planner, _ = prepared("svd")
    low, resident = planner.floor("auto")[0], planner.floor()[0]
    moved = [planner.plan(low + int(s * (resident - low)), offload="auto").moved_bytes for s in (0.0, 0.3, 0.9)]
    assert moved == sorted(moved, reverse=True)
    assert planner.plan(resident, offload="auto").moved_bytes == 0


# --- a live model ----------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    """Two layers, big enough to be streamed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (torch.nn.Linear(256, 256, dtype=torch.float64) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.nn.functional.gelu(self.first(x)))
        return result


X = torch.randn(8, 256, dtype=torch.float64)


@pytest.fixture
def squeezed() -> Iterator[tuple[Block, torch.Tensor]]:
    """A model compiled for less than its weights, and what it gives."""
    model = Block().eval()
    with torch.no_grad():
        reference = model(X)
    sicompiler.compile_for_budget(model, f"{int(0.7 * weights_bytes(model))}B")
    yield model, reference
    if installed_state(model) is not None:
        sicompiler.release(model)


def plan_of(model: Block) -> Plan:
    found = sicompiler.report(model).plan
    assert found is not None
    return found


def test_a_model_runs_in_less_memory_than_its_weights(squeezed: tuple[Block, torch.Tensor]) -> None:
    model, reference = squeezed
    parameters = dict(model.named_parameters())
    assert torch.equal(model(X), reference)
    plan = plan_of(model)
    assert plan.predicted_peak_bytes <= plan.budget_bytes < weights_bytes(model)
    assert {name for name, p in model.named_parameters() if is_offloaded(p)} == set(plan.streamed)
    assert dict(model.named_parameters()) == parameters  # the very same objects
    found = sicompiler.verify(model, ((X,), {}))
    assert found.bitwise
    assert found.fits
    assert found.untouched_peak_bytes > weights_bytes(model)
    with measure_peak("cpu") as peak:
        model(X)
    assert peak.bytes + X.nbytes + plan.weights_bytes <= plan.budget_bytes


def test_release_brings_the_weights_back(squeezed: tuple[Block, torch.Tensor]) -> None:
    model, reference = squeezed
    model(X)
    assert streams(model)
    sicompiler.release(model)
    assert not any(map(is_offloaded, named_tensors(model).values()))
    assert not streams(model)
    with torch.no_grad():
        assert torch.equal(model(X), reference)


def test_what_is_fused_into_a_streamed_weight_counts(squeezed: tuple[Block, torch.Tensor]) -> None:
    model, reference = squeezed
    model(X)
    with torch.no_grad():
        model.second.weight.mul_(2)
        model.second.bias.mul_(2)
    assert torch.equal(model(X), 2 * reference)


def test_weights_loaded_anew_are_streamed_anew(squeezed: tuple[Block, torch.Tensor]) -> None:
    model, reference = squeezed
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(X)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    assert torch.equal(model(X), reference)
    assert {name for name, p in model.named_parameters() if is_offloaded(p)} == set(plan_of(model).streamed)


def test_another_shape_is_planned_and_placed_on_its_own(squeezed: tuple[Block, torch.Tensor]) -> None:
    model, reference = squeezed
    assert torch.equal(model(X[:3]), reference[:3]) or torch.allclose(model(X[:3]), reference[:3], rtol=1e-12)
    assert torch.equal(model(X), reference)
    assert len(sicompiler.report(model).plans) == 2


def test_a_full_disk_leaves_the_model_as_it_was(
    squeezed: tuple[Block, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = squeezed
    with monkeypatch.context() as patch:
        full_disk(patch, after=1)
        with pytest.raises(OffloadError, match="No space left"):
            model(X)
        assert not any(map(is_offloaded, named_tensors(model).values()))
    assert torch.equal(model(X), reference)  # once there is room


def test_an_exception_in_a_run_leaves_the_model_usable(
    squeezed: tuple[Block, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = squeezed
    model(X)
    state = installed_state(model)
    assert state is not None
    graph = next(iter(state.compiled.values())).program.graph_module
    with monkeypatch.context() as patch:
        patch.setattr(graph, "forward", lambda *args: (_ for _ in ()).throw(RuntimeError("in a slice")))
        with pytest.raises(RuntimeError, match="in a slice"):
            model(X)
    assert torch.equal(model(X), reference)


def test_offloading_is_none_or_auto() -> None:
    with pytest.raises(sicompiler.BadInput, match="none, auto"):
        sicompiler.compile_for_budget(Block(), 1, offload="disk")  # type: ignore[arg-type]
    model = sicompiler.compile_for_budget(Block().eval(), "1MiB", offload="none")
    with pytest.raises(OverBudget, match="not allowed"):
        model(X)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_host_memory_is_counted_as_its_allocator_rounds_it(device_type: str) -> None:
    """On CUDA spilled values take powers of two of pinned memory, and weights that are registered what they hold."""
    (module, args, kwargs), _, planner, _ = prepared("svd")
    if device_type == "cuda":
        _, planner = prepare(module, args, kwargs, device_type=device_type)
    plan = planner.plan(planner.floor("auto")[0], offload="auto")
    facts = next(s.graph.facts for s in planner.source.offloaded if s.graph.fingerprint == plan.fingerprint)
    rules: dict[str, Callable[[int], int]] = {"cpu": int, "cuda": mapped_files.pinned_bytes}
    taken = rules[device_type]
    spilled = [facts.storages[facts.tensors[position][0].storage] for position in plan.spilled]
    assert spilled
    assert plan.streamed_bytes
    assert plan.host_bytes == plan.streamed_bytes + sum(taken(storage.nbytes) for storage in spilled)
