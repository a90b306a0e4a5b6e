"""A plan: the regions chosen for one model, input shape and budget. A value: JSON out and in, equal, diffable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sicompiler.axes.factor_map import Slicing
from sicompiler.errors import StalePlan

PLAN_VERSION = 2


@dataclass(frozen=True)
class RegionPlan:
    """One sliced loop.

    Attributes:
        start, stop: positions in the schedule (`first` and `last` name the operators).
        seed: slicing of the first operator's result, from which everything else follows.
        axis: name of the axis, for people.
        size: its length.
        slice_length: length of a slice (the last one may be shorter).
        operators: how many operators run in the loop.
        first, last: names of the first and last operator.
        module: path of the module that most of them belong to.
        peak_bytes: predicted peak of activations while the loop runs.
        seconds: predicted time.
    """

    start: int
    stop: int
    seed: Slicing
    axis: str
    size: int
    slice_length: int
    operators: int
    first: str
    last: str
    module: str
    peak_bytes: int
    seconds: float

    @property
    def slices(self) -> int:
        """Number of slices."""
        return -(-self.size // self.slice_length)


@dataclass(frozen=True)
class OuterLoop:
    """A loop over an axis that commutes with the whole graph.

    Attributes:
        axis: its name.
        size: its length.
        slice_length: how much of it goes through the graph at a time.
        seeds: for each sliced input (by position among the placeholders), the slicing of it.
    """

    axis: str
    size: int
    slice_length: int
    seeds: tuple[tuple[int, Slicing], ...]

    @property
    def slices(self) -> int:
        """Number of passes through the graph."""
        return -(-self.size // self.slice_length)


@dataclass(frozen=True)
class Plan:
    """How a model runs inside a budget.

    Attributes:
        model: name of the model, for people.
        fingerprint: of the cleaned graph; a plan is refused for any other.
        torch_version: the torch it was made with.
        device: "cpu" or "cuda".
        dtype: of the weights.
        budget_bytes: weights, inputs, activations and workspace together.
        weights_bytes: resident parameters and buffers, streamed ones left out.
        unsliced_peak_bytes: predicted peak of the captured graph without slicing, weights included.
        predicted_peak_bytes: predicted peak of this plan, weights included.
        floor_bytes: the smallest budget that any plan reaches, weights included.
        floor_operator: the operator that sets the floor.
        outer: the loop around the whole graph, if any.
        regions: the sliced loops, in schedule order.
        seconds: predicted time of a run.
        timings: seconds spent on capture, analysis and planning; not part of the plan's identity.
        held_bytes: alive all the time beside weights and graph: what an outer loop holds whole.
        phase: what part of a pipeline the call is: "denoise", "decode", ...
        spilled: positions of the operators whose results lie in far memory.
        streamed: names of the weights that lie in far memory.
        prefetched: for each step (position of its first operator) whose weights are fetched early, the step before
            which that starts.
        streamed_bytes: of the streamed weights.
        moved_bytes: carried to and from far memory in one run.
        recomputed: whether large values are made again rather than kept (`passes.recompute`).
    """

    model: str
    fingerprint: str
    torch_version: str
    device: str
    dtype: str
    budget_bytes: int
    weights_bytes: int
    unsliced_peak_bytes: int
    predicted_peak_bytes: int
    floor_bytes: int
    floor_operator: str
    outer: OuterLoop | None
    regions: tuple[RegionPlan, ...]
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict, compare=False)
    held_bytes: int = 0
    phase: str = "denoise"
    spilled: tuple[int, ...] = ()
    streamed: tuple[str, ...] = ()
    prefetched: tuple[tuple[int, int], ...] = ()
    streamed_bytes: int = 0
    moved_bytes: int = 0
    recomputed: bool = False
    version: int = PLAN_VERSION

    @property
    def uses_far_memory(self) -> bool:
        """Whether anything is spilled or streamed."""
        return bool(self.spilled or self.streamed)

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is within the budget."""
        return self.predicted_peak_bytes <= self.budget_bytes

    def region_peak_bytes(self, region: RegionPlan) -> int:
        """Predicted peak while a region of this plan runs, weights included."""
        return region.peak_bytes + self.held_bytes + self.weights_bytes

    def to_json(self, *, indent: int | None = 2) -> str:
        """Write the plan as JSON; `Plan.from_json` reads it back, equal."""
        return json.dumps(asdict(self), indent=indent)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            StalePlan: the text is no plan, or of another version of the format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["version"] != PLAN_VERSION:
                raise StalePlan(
                    f"the plan has format {data['version']}, this version reads format {PLAN_VERSION}; plan again"
                )
            outer = data.pop("outer")
            regions = tuple(RegionPlan(**{**r, "seed": Slicing(**r["seed"])}) for r in data.pop("regions"))
            if outer is not None:
                outer = OuterLoop(**{**outer, "seeds": tuple((p, Slicing(**s)) for p, s in outer["seeds"])})
            data |= {name: tuple(data[name]) for name in ("spilled", "streamed")}
            data["prefetched"] = tuple((step, before) for step, before in data["prefetched"])
            return Plan(outer=outer, regions=regions, **data)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise StalePlan(f"this is not a plan: {type(error).__name__}: {error}") from error

    def check(self, *, fingerprint: str, torch_version: str, device: str) -> None:
        """Make sure that the plan belongs to a graph.

        Raises:
            StalePlan: it was made for another model or input shape, another torch or another device.
        """
        wanted = {"fingerprint": fingerprint, "torch_version": torch_version, "device": device}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise StalePlan(
                    f"the plan of {self.model} was made for {name} {getattr(self, name)}, but this is {value}; "
                    "plan again"
                )
