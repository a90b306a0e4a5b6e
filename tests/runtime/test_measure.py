"""measure_peak: exact on known patterns of allocations, sees inside kernels, survives exceptions, nests."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sicompiler.errors import BadInput, SicompilerError
from sicompiler.ops import offloaded_tensor
from sicompiler.runtime.measure import MAX_POINTS, Peak, levels, measure_peak, observe_peak, thin
from sicompiler.units import KIB, MIB
from tests.threads import in_threads


def _block(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


def test_known_allocations() -> None:
    with measure_peak("cpu") as peak:
        first = _block(MIB)
        second = _block(2 * MIB)
        del first
        third = _block(KIB)
        del second, third
    assert peak.bytes == 3 * MIB
    assert [level for _, level in peak.timeline()] == [0, MIB, 3 * MIB, 2 * MIB, 2 * MIB + KIB, KIB, 0]
    assert peak.reserved_bytes is None
    assert peak.allocated_at_entry is None
    assert peak.method == "allocator events of torch.profiler"


def test_offloading_never_counted_so_that_its_release_lowers_nothing() -> None:
    """As when weights come back from offload memory: they count from then on."""
    weight = torch.nn.Parameter(offloaded_tensor((MIB // 4,), (1,), torch.float32, torch.device("cpu")))
    with measure_peak("cpu", older=[weight]) as peak:
        weight.data = weight.data.clone()
        later = _block(2 * MIB)
    assert peak.bytes == 3 * MIB
    assert later.numel()


def test_the_release_of_older_tensors_is_followed_where_asked_for() -> None:
    """As when a pipeline casts weights: the new ones must not count on top of the old."""
    for older, peak_bytes in (((), 12 * MIB), (("weight",), 10 * MIB)):
        layer = torch.nn.Linear(KIB, KIB, bias=False)
        with measure_peak("cpu", older=[getattr(layer, name) for name in older]) as peak:
            _block(10 * MIB)  # beside the old weight, which does not count down before it goes
            layer.to(torch.float64)  # 8 MiB, then the 4 MiB of float32 go
            later = _block(4 * MIB)
        assert peak.bytes == peak_bytes
        assert later.numel()


def test_nothing_allocated() -> None:
    with measure_peak("cpu") as peak:
        pass
    assert peak.bytes == 0
    assert peak.timeline() == [(0.0, 0)]


def test_an_operator_and_its_result() -> None:
    x, weight = torch.randn(64, 32), torch.randn(16, 32)
    with measure_peak("cpu") as peak:
        F.linear(x, weight)
    assert peak.bytes == 64 * 16 * 4


@pytest.mark.parametrize("threads", [1, 2])
def test_buffers_inside_kernels_are_seen(threads: int) -> None:
    x, weight = torch.randn(1, 4, 16, 16, dtype=torch.float64), torch.randn(8, 4, 3, 3, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with measure_peak("cpu") as peak:
            F.conv2d(x, weight, padding=1)
    finally:
        torch.set_num_threads(before)
    im2col = 4 * 9 * 16 * 16 * 8
    assert peak.bytes == 8 * 16 * 16 * 8 + im2col


def test_what_is_older_is_not_followed() -> None:
    older = _block(4 * MIB)
    with measure_peak("cpu") as peak:
        del older
        newer = _block(MIB)
    assert peak.bytes == MIB
    del newer
    with measure_peak("cpu") as peak:  # the address of `newer` may come again
        _block(MIB)
    assert peak.bytes == MIB


def test_repeated_measurements_agree() -> None:
    x = torch.randn(2, 8, 32, 32)
    found = set()
    for _ in range(5):
        with measure_peak("cpu") as peak:
            y = F.silu(F.group_norm(x, 2))
        found.add(peak.bytes)
        del y
        junk = [_block(n) for n in (100, 32 * KIB, 64 * KIB)]
        del junk
        gc.collect()
    assert found == {2 * x.numel() * 4}


def test_exceptions_pass_and_the_peak_stands() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), measure_peak("cpu") as peak:
        torch.mm(torch.zeros(512, 512), torch.zeros(0, 3))
    assert peak.bytes == MIB
    with measure_peak("cpu") as again:
        _block(KIB)
    assert again.bytes == KIB


@pytest.mark.parametrize("inner", [measure_peak, observe_peak])
def test_measurements_lie_within_one_another(inner: Callable[[str], AbstractContextManager[Peak]]) -> None:
    """Each counts from its own beginning, and follows blocks across those within it."""
    with measure_peak("cpu") as outer:
        first = _block(MIB)
        with inner("cpu") as inside:
            second = _block(4 * MIB)
            del first
            with inner("cpu") as innermost:
                third = _block(2 * MIB)
                del second
        _block(KIB)
        del third
        _block(3 * MIB)
    assert (outer.bytes, inside.bytes, innermost.bytes) == (6 * MIB, 6 * MIB, 2 * MIB)
    assert outer.timeline()[-1][1] == 0


def test_an_exception_within_leaves_the_outer_one_measuring() -> None:
    with measure_peak("cpu") as outer:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), measure_peak("cpu") as inside:
            torch.mm(torch.zeros(512, 512), torch.zeros(0, 3))
        _block(2 * MIB)
    assert (outer.bytes, inside.bytes) == (2 * MIB, MIB)


@pytest.mark.parametrize("inner", [measure_peak, observe_peak])
def test_two_threads_measure_at_once(inner: Callable[[str], AbstractContextManager[Peak]]) -> None:
    """Each sees its own blocks: torch.profiler has one session for the process, the other thread does without."""
    both, peaks = threading.Barrier(2, timeout=60), [0, 0]

    def measure(number: int) -> None:
        for _ in range(5):
            both.wait()
            with inner("cpu") as peak:
                both.wait()
                _block((number + 1) * MIB)
                both.wait()
            peaks[number] = peak.bytes

    in_threads(measure)
    assert peaks == [MIB, 2 * MIB]


def test_a_release_is_paired_by_size_where_addresses_are_not_known() -> None:
    events = [(1, None, 100), (2, None, 50), (3, None, -7), (4, None, -100), (5, None, 30), (6, None, -100)]
    assert levels(events, only_new=True) == [(0, 0), (1, 100), (2, 150), (4, 50), (5, 80)]


def test_a_running_profiler_is_refused() -> None:
    with torch.autograd.profiler.profile(), pytest.raises(SicompilerError, match="profiler"), measure_peak("cpu"):
        pass
    with measure_peak("cpu") as peak:
        _block(KIB)
    assert peak.bytes == KIB


PROFILERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "torch.profiler": lambda: torch.profiler.profile(profile_memory=True),
    "torch.profiler, warming up": lambda: torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=1)
    ),
    "torch.autograd.profiler": torch.autograd.profiler.profile,
}


@pytest.mark.parametrize("profiler", PROFILERS.values(), ids=PROFILERS.keys())
def test_a_profiler_in_another_thread_is_left_alone(profiler: Callable[[], AbstractContextManager[Any]]) -> None:
    """A second session of torch.profiler would cancel the first, and then crash the process."""
    both, bytes_of = threading.Barrier(2, timeout=60), [0, 0]

    def work(number: int) -> None:
        with profiler() if number == 0 else nullcontext():
            both.wait()
            if number == 1:
                with measure_peak("cpu") as peak:
                    _block(MIB)
                bytes_of[number] = peak.bytes
            both.wait()

    in_threads(work)
    assert bytes_of[1] == MIB


def test_a_profiler_can_not_start_inside_and_the_measurement_goes_on() -> None:
    with measure_peak("cpu") as peak:
        with pytest.raises(SicompilerError, match=r"torch\.profiler can't start while"), torch.profiler.profile():
            pass
        _block(MIB)
    assert peak.bytes == MIB
    with torch.profiler.profile() as profiler:
        torch.ones(2) + 1
    assert any(event.name == "aten::add" for event in profiler.events())


def test_where_a_profiler_runs_what_nobody_asked_for_is_not_measured() -> None:
    with torch.profiler.profile() as profiler, observe_peak("cpu") as peak:
        torch.ones(2) + 1
    assert peak.not_measured == "a profiler of yours was running"
    assert peak.bytes == 0
    assert any(event.name == "aten::add" for event in profiler.events())


def test_other_devices_are_refused() -> None:
    with pytest.raises(BadInput, match="cpu, cuda, cuda-before-ampere, xpu, mps"), measure_peak("meta"):
        pass


def test_allocations_under_a_user_annotation_are_seen() -> None:
    with measure_peak("cpu") as peak, torch.profiler.record_function("mine"):
        _block(MIB)
    assert peak.bytes == MIB


def test_levels_of_new_blocks_only() -> None:
    events = [(1, 10, 100), (2, 20, 50), (3, 99, -7), (4, 10, -100), (5, 10, 30)]
    assert levels(events, only_new=True) == [(0, 0), (1, 100), (2, 150), (4, 50), (5, 80)]
    assert levels(events, only_new=False)[3] == (3, 143)
    lost = [(1, 10, 100), (2, 10, 60), (3, 10, -60)]  # the release of the first was not reported
    assert levels(lost, only_new=True) == [(0, 0), (1, 100), (2, 60), (3, 0)]


@given(st.lists(st.integers(-1000, 1000), max_size=300), st.integers(2, 40))
def test_thinning_keeps_the_highest(values: list[int], limit: int) -> None:
    points = list(enumerate(values))
    kept = thin(points, limit)
    assert len(kept) <= limit
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    if values:
        assert max(v for _, v in kept) == max(values)
        assert min(v for _, v in kept) == min(values)


def test_a_long_timeline_is_thinned() -> None:
    peak = Peak(torch.device("cpu"), "made up", _points=[(i, i * 7919 % 100003) for i in range(20000)])
    found = peak.timeline()
    assert len(found) <= MAX_POINTS
    assert max(level for _, level in found) == max(level for _, level in peak._points)


@pytest.mark.gpu
def test_cuda() -> None:
    with measure_peak("cuda") as peak:
        first = torch.empty(MIB, dtype=torch.uint8, device="cuda")
        second = torch.empty(2 * MIB, dtype=torch.uint8, device="cuda")
        del first, second
    assert peak.bytes == 3 * MIB
    assert peak.allocated_at_entry is not None
    assert peak.reserved_bytes is not None
    assert peak.reserved_bytes >= peak.bytes
    assert max(level for _, level in peak.timeline()) == 3 * MIB
