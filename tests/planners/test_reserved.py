"""What plans reserve: runs replayed by the allocator's rules, budgets that bound it, snapshots for torch's viewer."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.cuda import _memory_viz

from sicompiler import testing
from sicompiler.api import prepare
from sicompiler.capture import Source
from sicompiler.compiler.planner import Planner
from sicompiler.compiler.prepare import analyse
from sicompiler.compiler.reserve import lowest_reserving, plan_reserving, plan_within_reserving, with_reserved
from sicompiler.errors import BadInput, OverBudget
from sicompiler.facts.allocator import CachingAllocator
from sicompiler.facts.memory_blocks import CUDA_RULES
from sicompiler.plan import Plan
from sicompiler.replay.events import MemoryEvent, Repeated, RunFollower
from sicompiler.replay.run import SETTINGS, replay_run, rules_of, traced_run, unsliced_run
from sicompiler.replay.snapshot import write_snapshot
from sicompiler.testing import SMALL, WIDE
from sicompiler.units import MIB
from tests.zoo import captured, method_of


class Frames(nn.Module):
    """Frames widened and narrowed again, one by one: the wide ones are what a loop is for."""

    def __init__(self, frames: int = 19) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 128, 1), nn.Conv2d(128, 8, 1)
        self.inputs = (torch.randn(frames, 8, 64, 64),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow: torch.Tensor = self.down(torch.tanh(self.up(x)))
        return x + narrow


def planner_of(module: nn.Module, *args: Any, **kwargs: Any) -> Planner:
    return prepare(module.eval(), args, kwargs, device_type="cuda")[1]


def peaks_of(planner: Planner, plan: Plan) -> CachingAllocator:
    memory = CachingAllocator(CUDA_RULES)
    replay_run(planner.rewrite(plan), plan, memory)
    return memory


@pytest.fixture(scope="module")
def frames() -> Planner:
    model = Frames()
    return planner_of(model, *model.inputs)


@pytest.mark.parametrize("seed", [2, 7, 11, 26, 33])
def test_a_replay_comes_to_the_predicted_peak(seed: int) -> None:
    """The planner adds up lifetimes, the replay follows the rewritten program statement by statement."""
    module, args, kwargs = testing.random_network(seed, scale=WIDE if seed % 4 == 3 else SMALL)
    planner = planner_of(module, *args, **kwargs)
    high, low = planner.unsliced_bytes, planner.floor("auto")[0]
    for budget in {high, (high + low) // 2, low}:
        plan = planner.plan(budget, offload="auto")
        memory = peaks_of(planner, plan)
        constants = sum(b.source is Source.CONSTANT for b in planner.program.bindings)  # not among a model's weights
        assert memory.peak_live_bytes < plan.predicted_peak_bytes + 512 * (constants + 1)  # workspace is rounded here
        if plan.outer is None:
            assert memory.peak_live_bytes > 0.98 * plan.predicted_peak_bytes
        assert memory.peak_reserved_bytes >= memory.peak_allocated_bytes >= memory.peak_live_bytes


@pytest.mark.parametrize("name", ["svd", "animatediff"])
def test_so_it_does_for_video_models(name: str) -> None:
    (module, _, _), program = captured(name)
    planner = analyse(module, program, method=method_of(name), device_type="cuda")
    for budget in (planner.unsliced_bytes, planner.floor()[0]):
        plan = planner.plan(budget)
        assert peaks_of(planner, plan).peak_live_bytes < plan.predicted_peak_bytes + 512


def test_slices_that_are_alike_are_told_once(frames: Planner) -> None:
    plan = plan_of_one_loop(frames)
    (region,) = plan.regions
    events = RunFollower(frames.rewrite(plan), "cuda").run()
    repeated = [event for event in events if isinstance(event, Repeated)]
    assert [each.times for each in repeated] == [region.size // region.slice_length]  # a shorter last one is apart
    alive: set[int] = set()
    for event in repeated[0].events:
        assert isinstance(event, MemoryEvent)
        (alive.add if event.nbytes else alive.remove)(event.key)
    assert not alive, "a slice leaves nothing behind"


def plan_of_one_loop(planner: Planner) -> Plan:
    """A plan of a single loop of some slices."""
    high, low = planner.unsliced_bytes, planner.floor()[0]
    for budget in range(low, high, (high - low) // 64):
        plan = planner.plan(budget)
        if [region.slices > 2 for region in plan.regions] == [True] and plan.outer is None:
            return plan
    raise AssertionError("no plan of one loop")


def test_budgets_bound_what_is_reserved(frames: Planner) -> None:
    peak = frames.plan(frames.unsliced_bytes)
    assert with_reserved(frames, peak).needed_bytes > peak.predicted_peak_bytes
    lowest = lowest_reserving(frames)
    for budget in (lowest.needed_bytes, lowest.needed_bytes + 16 * MIB, frames.unsliced_bytes + 64 * MIB):
        plan = plan_reserving(frames, budget)
        assert plan.fits
        assert plan.budget_bytes == budget
        assert plan.predicted_reserved_bytes is not None
        assert plan.predicted_allocated_bytes is not None
        assert plan.predicted_allocated_bytes <= plan.predicted_reserved_bytes <= budget
        assert plan == plan_within_reserving(frames, budget)
        memory = CachingAllocator(CUDA_RULES, capacity_bytes=budget)
        replay_run(frames.rewrite(plan), plan, memory)  # no MemoryError on a card of exactly the budget
        assert Plan.from_json(plan.to_json()) == plan


def test_a_budget_that_holds_what_is_alive_but_not_what_is_kept_is_refused(frames: Planner) -> None:
    floor = frames.floor()[0]
    assert frames.plan(floor).predicted_peak_bytes <= floor
    with pytest.raises(
        OverBudget, match=r"the allocator reserves .* with PYTORCH_ALLOC_CONF=expandable_segments"
    ) as no:
        plan_reserving(frames, floor)
    assert plan_within_reserving(frames, floor) is None
    assert plan_reserving(frames, no.value.floor_bytes).fits


def test_the_environment_of_the_allocator_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert rules_of("cuda") == CUDA_RULES
    assert rules_of("cpu") is None
    assert rules_of("mps") is None
    monkeypatch.setenv(SETTINGS[0], "garbage_collection_threshold:0.6, expandable_segments:True")
    assert rules_of("cuda") == replace(CUDA_RULES, expandable=True)


def test_on_the_cpu_nothing_is_reserved() -> None:
    model = Frames()
    planner = prepare(model, model.inputs, {})[1]
    plan = plan_reserving(planner, planner.floor()[0])
    assert plan.predicted_reserved_bytes is None
    assert plan == planner.plan(planner.floor()[0])
    with pytest.raises(BadInput, match="keeps none"):
        traced_run(planner.rewrite(plan), plan)


def test_a_snapshot_is_what_the_viewer_of_torch_reads(frames: Planner, tmp_path: Path) -> None:
    plan = plan_of_one_loop(frames)
    runs = [traced_run(frames.rewrite(plan), plan), unsliced_run(frames.program, plan)]
    path = write_snapshot(tmp_path / "plan.pickle", runs)
    data = pickle.loads(path.read_bytes())  # our own file of a moment ago
    assert "total_reserved" in _memory_viz.segsum(data)
    assert _memory_viz.trace_plot(data).count("snapshot")
    assert _memory_viz.trace(data).count("cudaMalloc") == sum(
        entry["action"] == "segment_alloc" for trace in data["device_traces"] for entry in trace
    )
    for device, run in enumerate(runs):
        assert peak_of(data["device_traces"][device]) == max_requested(run)
    assert max_requested(runs[0]) < max_requested(runs[1])
    names = {frame["name"] for entry in data["device_traces"][0] for frame in entry["frames"]}
    assert {"aten.conv2d.default conv2d", "parameter p_up_weight", "aten.tanh.default tanh"} <= names
    with pytest.raises(BadInput, match="can't write"):
        write_snapshot(tmp_path / "missing" / "plan.pickle", runs)


def peak_of(trace: list[dict[str, Any]]) -> int:
    """The highest level of what was asked for, as the viewer adds it up."""
    level = peak = 0
    for entry in trace:
        level += {"alloc": entry["size"], "free_completed": -entry["size"]}.get(entry["action"], 0)
        peak = max(peak, level)
    return peak


def max_requested(run: CachingAllocator) -> int:
    assert run.trace is not None
    return peak_of([{"action": entry.action, "size": entry.size} for entry in run.trace])
