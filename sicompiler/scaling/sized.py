"""A model at any size: captured and planned in full at one, captured at three more, written down at all others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sicompiler.capture import capture, weights_bytes
from sicompiler.compiler.analysis import analyze
from sicompiler.compiler.analyzed_graph import OUTER_HOISTED_SHARE, OUTER_SIZE, OuterGraph
from sicompiler.compiler.planner import Planner, make_planner
from sicompiler.compiler.prepare import dtype_name
from sicompiler.compiler.search import Progress
from sicompiler.compiler.searches import KnownSearches
from sicompiler.errors import CaptureError
from sicompiler.machines import machine_of
from sicompiler.scaling.carry import ReusableRegion, carried, known_regions
from sicompiler.scaling.form import Point, Polynomial, fit
from sicompiler.scaling.points import choose_points
from sicompiler.scaling.template import DifferentGraph, Reading, SizedGraph, Template, check_same, read

WORTH_IT = 4  # sizes; closed forms take one plan and three captures


@dataclass(frozen=True)
class SizedCall:
    """A model and one call of it, as far as planning asks.

    Attributes:
        module: the model.
        args, kwargs: of the call.
        method: which of its methods.
    """

    module: torch.nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    method: str


@dataclass(frozen=True)
class SizedLoop:
    """The graph inside an outer loop, at every size."""

    outer: OuterGraph
    template: Template
    regions: list[ReusableRegion]


@dataclass(frozen=True)
class FittedModel:
    """What a few captures say about every size.

    Attributes:
        planner: of the first point, in full.
        template: the graph.
        regions: what the plans of the first point are made of.
        loops: the same inside each outer loop.
        weights: bytes of the weights.
    """

    planner: Planner
    template: Template
    regions: list[ReusableRegion]
    loops: tuple[SizedLoop, ...]
    weights: Polynomial

    def sized(self, point: Point) -> SizedGraph | None:
        """The graph at a size; None where the captures say nothing about it."""
        return None if self.weights.at(point) is None else self.template.sized(point)

    def planner_at(self, point: Point, sized: SizedGraph) -> Planner:
        """A planner that knows the regions of the first point only."""
        weights = self.weights.at(point)
        assert weights is not None
        machine = machine_of(sized.facts.device_type)
        searches = [carried(sized, self.regions, None, machine)]
        for loop in self.loops:
            inner = loop.template.sized(point)
            placeholder, seed = loop.outer.loop.seeds[0]
            size = sized.facts.tensors[placeholder][0].shape[seed.dim] if seed.outer == seed.inner == 1 else seed.size
            hoisted = sum(
                sized.facts.storages[t.storage].nbytes
                for p in loop.outer.region.hoisted
                for t in {t.storage: t for t in sized.facts.tensors[p]}.values()
            )
            if inner is not None and size <= OUTER_SIZE and hoisted <= OUTER_HOISTED_SHARE * sized.line.peak_bytes:
                outer = replace(loop.outer, loop=replace(loop.outer.loop, size=size))
                searches.append(carried(inner, loop.regions, outer, machine))
        known = KnownSearches(tuple(searches), self.planner.source.progress, self.planner.source.timings)
        return replace(self.planner, bound=False, source=known, weights_bytes=weights)


class _Capture:
    """The numbers of one size; the graphs themselves are not kept."""

    def __init__(self, call: SizedCall, device_type: str) -> None:
        program = capture(call.module, call.args, call.kwargs, method=call.method)
        analysis = analyze(program, device_type)
        graph = analysis.legal
        self.reading = read(graph)
        self.weights = weights_bytes(call.module, device_type)
        self.loops: dict[str, Reading] = {}
        for outer in analysis.outers:
            self.loops[outer.loop.axis] = read(outer.graph)


class SizedModel:
    """A model whose planner can be had at any size: known exactly where it was captured, else from closed forms.

    Args:
        name: of the model.
        make: builds the call of a size.
        device_type: whose allocator and kernels to count with.
        progress: told about long work.
    """

    def __init__(self, name: str, make: Callable[[Point], SizedCall], device_type: str, progress: Progress) -> None:
        self.name, self.device_type = name, device_type
        self._make, self._progress = make, progress
        self._planned: dict[Point, Planner] = {}
        self._learned: list[FittedModel] = []

    def planned(self, point: Point) -> Planner:
        """The planner of a size, captured and searched in full."""
        if point not in self._planned:
            call = self._make(point)
            self._progress(f"{self.name}: capture", 0, 1)
            self._planned[point] = make_planner(
                capture(call.module, call.args, call.kwargs, method=call.method),
                model=self.name,
                weights_bytes=weights_bytes(call.module, self.device_type),
                dtype=dtype_name(call.module),
                device_type=self.device_type,
                progress=lambda what, done, total: self._progress(f"{self.name}: {what}", done, total),
                phase=call.method,
            )
        return self._planned[point]

    def weights_bytes(self, point: Point) -> int:
        """Bytes of the weights at a size, without a capture."""
        return weights_bytes(self._make(point).module, self.device_type)

    def learn(self, points: Sequence[Point]) -> FittedModel:
        """Plan at the first of some points, capture at the others, and find the form of every number.

        Raises:
            DifferentGraph: the graph depends on the sizes.
            CaptureError: the model can't be traced at some size.
        """
        planner = self.planned(points[0])
        first = read(planner.graph)
        captures: list[_Capture] = []
        for number, point in enumerate(points[1:]):
            self._progress(f"{self.name}: capture at other sizes", number, len(points) - 1)
            captures.append(_Capture(self._make(point), self.device_type))
            check_same(first, captures[-1].reading)
        template = Template(points, [first, *(c.reading for c in captures)], planner.graph)
        weights = fit(points, [planner.weights_bytes, *(c.weights for c in captures)])
        if weights is None:
            raise DifferentGraph("the bytes of the weights have no closed form")
        loops = []
        for search in planner.searches[1:]:
            if search.outer is None:  # large values rematerialized: another graph, of which nothing is read here
                continue
            readings = [c.loops.get(search.outer.loop.axis) for c in captures]
            with contextlib.suppress(DifferentGraph):  # without that loop, then: plans stay plans
                if None not in readings:
                    inner = Template(points, [read(search.graph), *(r for r in readings if r)], search.graph)
                    loops.append(SizedLoop(search.outer, inner, known_regions(search, inner)))
        regions = known_regions(planner.searches[0], template)
        self._learned.append(FittedModel(planner, template, regions, tuple(loops), weights))
        return self._learned[-1]

    def sized(self, point: Point) -> tuple[FittedModel, SizedGraph] | None:
        """The graph of a size by closed forms; None where nothing is known about it."""
        for learned in self._learned:
            found = learned.sized(point)
            if found is not None:
                return learned, found
        return None

    @property
    def learned(self) -> tuple[FittedModel, ...]:
        """What is known by closed forms, one for each kind of sizes."""
        return tuple(self._learned)

    def cover(self, wanted: Sequence[Point], steps: Point) -> list[str]:
        """Make closed forms for some sizes, where that is less work than planning each.

        Args:
            wanted: the sizes.
            steps: by what frames, height and width may change within the same operators; 0 where they stay.

        Returns:
            Why some sizes have none.
        """
        groups: dict[tuple[int, ...], list[Point]] = {}
        for point in wanted:
            rest = tuple(n % step if step else n for n, step in zip(point, steps, strict=True))
            groups.setdefault(rest, []).append(point)
        return [why for group in groups.values() for why in self._cover(group, steps)]

    def _cover(self, group: Sequence[Point], steps: Point) -> list[str]:
        points = choose_points(group, steps) if len(group) >= WORTH_IT else None
        if points is None:
            return []
        self.planned(points[0])
        try:
            self.learn(points)
        except (DifferentGraph, CaptureError) as why:
            reason = [str(why).splitlines()[0]]
            frames = sorted({point[0] for point in group})
            if steps[0] and len(frames) > 1:
                apart = [self._cover([p for p in group if p[0] == f], (0, *steps[1:])) for f in frames]
                return list(dict.fromkeys([*reason, *(again for found in apart for again in found)]))
            return reason
        return []

    def is_planned(self, point: Point) -> bool:
        """Whether a size was captured and searched in full."""
        return point in self._planned
