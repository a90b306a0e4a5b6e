"""The table of devices: what its rows say, what is asked of devices that are not in it."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sicompiler
from sicompiler import BadInput
from sicompiler.compiler.prepare import prepare
from sicompiler.device import (
    Device,
    accelerator,
    check_available,
    default_device,
    descriptions,
    device_kind,
    device_kinds,
    random_rewinder,
    register_device,
    stream_in_use,
)
from sicompiler.facts.workspace.table import COLUMNS
from sicompiler.ops import mapped
from sicompiler.runtime.measure import measure_peak, observe_peak

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")


class Small(torch.nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layers."""
        result: torch.Tensor = self.layers(x)
        return x + result


def test_each_kind_that_torch_comes_with_has_a_row_with_a_column_of_workspace() -> None:
    assert set(device_kinds()) == set(Device)
    assert all(kind.workspace in COLUMNS for kind in device_kinds().values())
    assert [kind.name for kind in device_kinds().values() if not kind.untested] == ["cpu", "cuda", "cuda-before-ampere"]


def test_a_device_is_found_by_its_name_with_and_without_index() -> None:
    assert device_kind("cuda:1") is device_kind(torch.device("cuda", 3)) is device_kind("cuda")


def test_an_unknown_device_is_refused_with_the_list() -> None:
    with pytest.raises(BadInput, match="'meta'; it knows cpu, cuda, cuda-before-ampere, xpu, mps"):
        device_kind("meta")
    with pytest.raises(BadInput, match="on device 'meta'; sicompiler runs on cpu, cuda, cuda-before-ampere, xpu, mps"):
        sicompiler.compile_for_budget(Small().to("meta"), "1GiB")


def test_a_second_row_of_one_name_is_refused() -> None:
    register_device(device_kind("cuda"))  # the same again
    with pytest.raises(BadInput, match="another row for devices of kind 'cuda'"):
        register_device(replace(device_kind("cuda"), granule_bytes=1))


def test_without_an_accelerator_the_cpu_is_asked() -> None:
    assert accelerator() is None
    assert default_device() == torch.device("cpu")
    assert descriptions() == []
    assert stream_in_use() is None
    random_rewinder()()


def test_a_command_that_runs_a_model_names_the_device_that_is_here() -> None:
    check_available("cpu", "it runs the model")
    with pytest.raises(BadInput, match="no cuda device here; it runs the model, so take --device cpu"):
        check_available("cuda", "it runs the model")


def test_peaks_of_a_device_without_counters_are_refused_or_left_unmeasured() -> None:
    with pytest.raises(BadInput, match="the allocator of mps counts no peak"), measure_peak("mps"):
        pass
    with observe_peak("mps") as peak:
        pass
    assert peak.not_measured == "the allocator of mps counts no peak"


def test_in_unified_memory_nothing_is_offloaded_and_the_refusal_says_why() -> None:
    _, planner = prepare(Small(), (torch.randn(512, 64),), {}, device_type="mps")
    floor = planner.floor("auto")[0]
    assert floor == planner.floor("none")[0]
    with pytest.raises(sicompiler.OverBudget, match="offloading frees nothing in unified memory"):
        planner.plan(floor - 1, offload="auto")
    assert planner.plan(floor, offload="auto").spilled == ()


def test_idle_components_leave_where_another_memory_is() -> None:
    older = {("cuda-before-ampere", False), ("cuda-before-ampere", True)}
    leaves = {(name, off) for name in Device for off in (False, True) if device_kind(name).can_evict(offload=off)}
    assert leaves == {("cuda", False), ("cuda", True), *older, ("xpu", False), ("xpu", True), ("cpu", True)}


def test_weights_count_as_the_allocator_rounds_them() -> None:
    sizes = [p.numel() * 4 for p in Small().parameters()]
    weights = {
        kind.value: prepare(Small(), (torch.randn(8, 64),), {}, device_type=kind.value)[1].weights_bytes
        for kind in Device
    }
    assert weights["cpu"] == sum(sizes)
    assert weights["cuda"] == sum(-(-size // 512) * 512 for size in sizes)
    assert weights["mps"] == sum(-(-size // 256) * 256 for size in sizes)


def test_an_offloaded_tensor_lies_on_the_host_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        tensors = [mapped.offloaded_tensor(size, (1,), torch.float32, torch.device("cpu")) for size in ((8,), (0,))]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_a_plan_for_an_older_card_slices_attention_whose_scores_do_not_fit() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    q = torch.randn(1, 8, 512, 64).bfloat16()
    planners = {
        device: prepare(Attention(), (q,), {}, device_type=device)[1] for device in ("cuda", "cuda-before-ampere")
    }
    newer, older = planners.values()
    assert older.unsliced_bytes - newer.unsliced_bytes > 2 * 8 * 512 * 512 * 4
    plan = older.plan(newer.unsliced_bytes + 2**22)
    assert plan.regions or plan.outer


def test_lasting_pinned_memory_is_registered_where_it_lies_until_nothing_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[tuple[str, int]] = []

    def register(address: int, nbytes: int) -> bool:
        events.append(("registered", nbytes))
        return True

    monkeypatch.setattr(mapped, "register_host", register)
    monkeypatch.setattr(mapped, "unregister_host", lambda address: events.append(("unregistered", address)))
    tensor = mapped.offloaded_tensor((3, 5), (5, 1), torch.float32, torch.device("cuda"), lasting=True)
    address, part = tensor.data_ptr(), tensor[1]
    tensor.fill_(2.0)
    del tensor
    gc.collect()
    assert events == [("registered", 60)], "60 bytes, where the allocator of pinned memory takes 64"
    assert part.tolist() == [2.0] * 5
    del part
    gc.collect()
    assert events[1:] == [("unregistered", address)]


def test_where_memory_cannot_be_registered_or_pinned_that_is_an_error_of_offloading() -> None:
    for lasting in (False, True):
        with pytest.raises(sicompiler.OffloadError, match=r"can't pin host memory for a tensor of shape \(4, 4\)"):
            mapped.offloaded_tensor((4, 4), (4, 1), torch.float32, torch.device("cuda"), lasting=lasting)


@pytest.mark.parametrize(("nbytes", "taken"), [(0, 0), (1, 1), (60, 64), (64, 64), (2**20 + 1, 2**21)])
def test_the_allocator_of_pinned_memory_takes_powers_of_two(nbytes: int, taken: int) -> None:
    assert mapped.pinned_bytes(nbytes) == taken


def test_statistics_of_groups_are_float64_where_there_is_float64() -> None:
    stats = torch.ops.sicompiler.group_stats.default
    assert stats(torch.empty(2, 4, 8, device="meta"), 2).dtype is torch.float64
    with FakeTensorMode():
        assert stats(torch.empty(2, 4, 8, device="mps"), 2).dtype is torch.float32
