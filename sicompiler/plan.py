"""A plan: the regions chosen for one model, input shape and budget. A value: JSON out and in, equal, diffable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sicompiler._version import __version__
from sicompiler.axes.factor_map import Slicing
from sicompiler.codec import Malformed, decode, digest, json_schema, read_object, refuse_other
from sicompiler.errors import BadInput, OverBudget, StalePlan
from sicompiler.units import budget_hint, format_bytes

PLAN_VERSION = 3


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
        digest: of what the region is, operator by operator: slicings, halos, what is read and written. Carried out,
            it has to come to the same again. Empty for a region written by hand.
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
    digest: str = ""

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
        fingerprint: of the graph whose positions the plan counts: the legal graph, the one in which values are
            rematerialized, or one slice of the outer loop.
        legal_fingerprint: of the legal graph that one was made from.
        rules: digest of the factor maps of every call in both graphs.
        settings: digest of the passes and of the thresholds that decide what becomes of a graph and a plan.
        sicompiler_version, torch_version: what it was made with.
        device: the kind of device, a row of `sicompiler.device`.
        dtype: of the weights.
        budget_bytes: weights, inputs, activations and workspace together.
        weights_bytes: resident parameters and buffers, streamed ones left out.
        unsliced_peak_bytes: predicted peak of the captured graph without slicing, weights included.
        predicted_peak_bytes: predicted peak of this plan, weights included.
        floor_bytes: the smallest budget that any plan reaches, weights included; None where nobody had to look for it.
        floor_operator: the operator that sets the floor; empty where that is not known.
        outer: the loop around the whole graph, if any.
        regions: the sliced loops, in schedule order.
        seconds: predicted time of a run.
        timings: seconds spent on capture, analysis and planning; not part of the plan's identity.
        held_bytes: alive all the time beside weights and graph: what an outer loop holds whole.
        phase: what part of a pipeline the call is: "denoise", "decode", ...
        spilled: positions of the operators whose results are offloaded.
        streamed: names of the weights that are offloaded.
        prefetched: for each step (position of its first operator) whose weights are fetched early, the step before
            which that starts.
        streamed_bytes: of the streamed weights.
        moved_bytes: carried to and from offload memory in one run.
        rematerialized_bytes: values of so many bytes or more that wait for their own statistics are rematerialized
            (`passes.rematerialize`); 0 for none. A share of the unsliced peak, so it depends on the machine.
        planner: what chose the regions: "dp", the name that another planner is registered by, or that of a function.
        host_bytes: of host memory that offloaded values and weights take at most: pinned for an accelerator, in mapped
            files for a CPU. Values that are spilled at different times count each.
        timed_by: where the figures of the cost model come from; not part of the plan's identity.
        predicted_allocated_bytes: the peak as the device's allocator counts, whose blocks may be a little larger than
            what was asked for; None where it counts as asked, or nobody has looked.
        predicted_reserved_bytes: what the allocator takes from the device at most; None as above.
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
    floor_bytes: int | None
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
    rematerialized_bytes: int = 0
    host_bytes: int = 0
    timed_by: str = field(default="round figures", compare=False)
    predicted_allocated_bytes: int | None = None
    predicted_reserved_bytes: int | None = None
    legal_fingerprint: str = ""
    rules: str = ""
    settings: str = ""
    sicompiler_version: str = ""
    planner: str = "dp"
    version: int = PLAN_VERSION

    @property
    def uses_offload(self) -> bool:
        """Whether anything is spilled or streamed."""
        return bool(self.spilled or self.streamed)

    @property
    def rematerialized(self) -> bool:
        """Whether large values are rematerialized rather than kept."""
        return self.rematerialized_bytes > 0

    @property
    def fits(self) -> bool:
        """Whether the predicted peak, and what is reserved for it, are within the budget."""
        return self.needed_bytes <= self.budget_bytes

    @property
    def counted_peak_bytes(self) -> int:
        """The predicted peak, as the device's allocator counts it."""
        return max(self.predicted_peak_bytes, self.predicted_allocated_bytes or 0)

    @property
    def needed_bytes(self) -> int:
        """What the device must have: all that is reserved, where that is more than what is alive."""
        return max(self.predicted_peak_bytes, self.predicted_reserved_bytes or 0)

    def region_peak_bytes(self, region: RegionPlan) -> int:
        """Predicted peak while a region of this plan runs, weights included."""
        return region.peak_bytes + self.held_bytes + self.weights_bytes

    def to_json(self, *, indent: int | None = 2) -> str:
        """Write the plan as JSON; `Plan.from_json` reads it back, equal."""
        data = {name: value for name, value in asdict(self).items() if (name, value) not in _LEFT_OUT.items()}
        return json.dumps({**data, CHECKSUMS: _checksums(json.loads(json.dumps(data)))}, indent=indent)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            StalePlan: the text is no plan, of another version of the format, or was changed since it was written; names
                the field that is wrong.
        """
        try:
            data = read_object(text)
            refuse_other(data, "a plan")
            if data.get("version") != PLAN_VERSION:
                if "version" not in data:
                    raise StalePlan("this is not a plan: it names no version of the format")
                raise StalePlan(
                    f"the plan has format {data['version']!r}, this version reads format {PLAN_VERSION}; plan again"
                )
            sums = data.pop(CHECKSUMS, None)
            written = {**_LEFT_OUT, **data}
            for name in (each.name for each in fields(Plan) if each.name not in written):
                raise Malformed(f"{name} is missing")
            plan = decode(Plan, written)
            for path, why in _impossible(plan):
                raise Malformed(f"{path} {why}")
            for name, checksum in _checksums(data).items():
                if not isinstance(sums, dict) or sums.get(name) != checksum:
                    raise Malformed(f"{name} was changed after the plan was written (its checksum differs)")
        except Malformed as error:
            raise StalePlan(f"this is not a plan: {error}") from error
        return plan

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from a file.

        Raises:
            BadInput: the file can't be read.
            StalePlan: it holds no plan of this version; names the file.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"can't read the plan {path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            return Plan.from_json(text)
        except StalePlan as error:
            raise StalePlan(f"{path}: {error}") from error

    def check(self, **wanted: str) -> None:
        """Make sure that the plan belongs to a graph.

        Args:
            wanted: what fields of the plan have to be, by name: `fingerprint`, `torch_version`, `device`, ...

        Raises:
            StalePlan: it was made for another model or input shape, another version or another device; names the first
                field that differs.
        """
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise StalePlan(
                    f"the plan of {self.model} was made for {_FIELDS.get(name, name)} {getattr(self, name)}, but this "
                    f"is {value}; plan again"
                )

    def check_bytes(self, weights_bytes: int, budget_bytes: int) -> None:
        """Make sure that the plan counts the weights of a model, and is within a budget.

        Raises:
            StalePlan: it was made for other weights.
            OverBudget: it needs more.
        """
        if weights_bytes != self.weights_bytes + self.streamed_bytes:
            raise StalePlan(
                f"the plan of {self.model} was made for {self.weights_bytes + self.streamed_bytes} bytes of weights, "
                f"but this model has {weights_bytes}; plan again"
            )
        if self.needed_bytes > budget_bytes:
            raise OverBudget(
                f"the plan of {self.model} needs {format_bytes(self.needed_bytes)}, but the budget is "
                f"{format_bytes(budget_bytes)}: give {budget_hint(self.needed_bytes)}, or plan for this budget",
                budget_bytes=budget_bytes,
                floor_bytes=self.needed_bytes,
                culprit=self.floor_operator,
            )

    def check_values(self) -> None:
        """Make sure that positions and lengths are possible in some graph.

        Raises:
            StalePlan: they are not; names the field.
        """
        for path, why in _impossible(self):
            raise StalePlan(f"the plan of {self.model} can't be carried out: {path} {why}; plan again")


CHECKSUMS = "checksums"  # of a plan in JSON: a short digest of every field by name
_LEFT_OUT = {"planner": "dp"}  # of the JSON where a field has this value: files from before the field are read

_FIELDS = {
    "sicompiler_version": "sicompiler",
    "torch_version": "torch",
    "settings": "passes and thresholds (settings)",
    "rules": "axis rules (rules)",
    "legal_fingerprint": "the graph of fingerprint",
}


def plan_schema() -> dict[str, Any]:
    """The JSON schema of the file of a plan."""
    schema = json_schema(Plan)
    sums = {"type": "object", "additionalProperties": {"type": "string"}}
    schema["properties"][CHECKSUMS] = {"description": "a short digest of every other field.", **sums}
    schema["required"] = [name for name in schema["properties"] if name not in _LEFT_OUT]
    return schema


def _checksums(data: Mapping[str, Any]) -> dict[str, str]:
    """A short digest of every field, so that an error names the one that was changed."""
    return {name: digest(json.dumps(value, sort_keys=True))[:8] for name, value in data.items()}


def _impossible(plan: Plan) -> Iterator[tuple[str, str]]:
    """Fields whose values can't be right, whatever the graph: path, and what is wrong with it."""
    yield from _negative(plan)
    if plan.outer is not None:
        yield from _impossible_outer(plan, plan.outer)
    yield from _impossible_regions(plan.regions)
    yield from _impossible_transfers(plan)


_REPLAYED = ("predicted_allocated_bytes", "predicted_reserved_bytes")


def _negative(plan: Plan) -> Iterator[tuple[str, str]]:
    names = ("budget_bytes", "weights_bytes", "unsliced_peak_bytes", "predicted_peak_bytes", "floor_bytes")
    for name in (*names, "held_bytes", "streamed_bytes", "moved_bytes", "rematerialized_bytes", "seconds", *_REPLAYED):
        if (getattr(plan, name) or 0) < 0:
            yield name, f"is negative: {getattr(plan, name)}"


def _impossible_outer(plan: Plan, outer: OuterLoop) -> Iterator[tuple[str, str]]:
    if not 1 <= outer.slice_length <= outer.size:
        yield "outer.slice_length", f"is {outer.slice_length} of an axis of {outer.size}"
    if not outer.seeds or any(seed.size != outer.size for _, seed in outer.seeds):
        yield "outer.seeds", f"must slice axes of {outer.size}"
    if plan.rematerialized_bytes:
        yield "rematerialized_bytes", "goes with no outer loop"
    yield from ((f"outer.seeds[{i}]", why) for i, (p, s) in enumerate(outer.seeds) for why in _wrong_seed(p, s))


def _impossible_regions(regions: Sequence[RegionPlan]) -> Iterator[tuple[str, str]]:
    end = 0
    for i, region in enumerate(regions):
        path = f"regions[{i}]"
        yield from ((f"{path}.seed", why) for why in _wrong_seed(region.start, region.seed))
        if region.start < end:
            yield f"{path}.start", f"is {region.start}, before {end}, where the region before it ends"
        if region.stop <= region.start:
            yield f"{path}.stop", f"is {region.stop}, not after its start at {region.start}"
        if region.size != region.seed.size:
            yield f"{path}.size", f"is {region.size}, but its seed has {region.seed.size}"
        if not 1 <= region.slice_length <= region.size:
            yield f"{path}.slice_length", f"is {region.slice_length} of an axis of {region.size}"
        end = max(end, region.stop)


def _impossible_transfers(plan: Plan) -> Iterator[tuple[str, str]]:
    if len(set(plan.spilled)) < len(plan.spilled) or any(p < 0 for p in plan.spilled):
        yield "spilled", f"must be different positions, got {plan.spilled}"
    if len(set(plan.streamed)) < len(plan.streamed):
        yield "streamed", "names a weight twice"
    for step, before in plan.prefetched:
        if not 0 <= before < step:
            yield "prefetched", f"fetches for step {step} before step {before}"


def _wrong_seed(position: int, seed: Slicing) -> Iterator[str]:
    if position < 0:
        yield f"is of position {position}"
    if seed.dim < 0 or min(seed.outer, seed.size, seed.inner) < 1:
        yield f"is no slicing: {seed}"


def current_versions() -> dict[str, str]:
    """The versions that a plan made now is for, by the names of its fields."""
    import torch

    return {"sicompiler_version": __version__, "torch_version": torch.__version__.split("+")[0]}
