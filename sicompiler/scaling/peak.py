"""The unsliced peak as a formula: the highest of a few sums, each of all that is alive while one operator runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sicompiler.device import device_kind
from sicompiler.facts.modules import describe
from sicompiler.facts.storages import Origin
from sicompiler.scaling.form import Point, Polynomial, corners, fit, symbols
from sicompiler.scaling.sized import FittedModel
from sicompiler.scaling.template import DifferentGraph, SizedGraph

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True)
class ClosedPeak:
    """The unsliced peak, weights included, in bytes.

    Attributes:
        expression: in F, H and W.
        operators: whose sums it is the maximum of, in order.
        checked: sizes at which it equals the sum of all that is alive, to the byte.
    """

    expression: sympy.Expr
    operators: tuple[str, ...]
    checked: tuple[Point, ...]


def closed_peak(learned: FittedModel, points: Sequence[Point], steps: Point) -> ClosedPeak:
    """Find the operators that can be the peak, and add up what is alive at each.

    Args:
        learned: the model.
        points: sizes at which the formula has to be right to the byte; the captured ones are added.
        steps: by what frames, height and width change.

    Raises:
        DifferentGraph: the workspace of such an operator has no closed form.
    """
    import sympy

    sized = {p: found for p in dict.fromkeys([*learned.template.points, *points]) if (found := learned.sized(p))}
    positions: dict[int, None] = dict.fromkeys(graph.line.peak_position for graph in sized.values())
    sums = {position: _alive(learned, sized, position, steps) for position in positions}
    highest = sympy.Max(*sums.values(), evaluate=False) if len(sums) > 1 else next(iter(sums.values()))
    expression = highest + learned.weights.symbolic()
    for point, graph in sized.items():
        weights = learned.weights.at(point)
        assert weights is not None
        if evaluate(expression, point) != graph.line.peak_bytes + weights:
            raise DifferentGraph(f"the formula is not right at {point}")
    nodes = learned.template.reference.facts.nodes
    return ClosedPeak(expression, tuple(describe(nodes[p]) for p in positions), tuple(sized))


def evaluate(expression: sympy.Expr, point: Point) -> int:
    """The value of a formula at some sizes."""
    return int(expression.subs(dict(zip(symbols(), point, strict=True))))


def _alive(learned: FittedModel, sized: dict[Point, SizedGraph], position: int, steps: Point) -> Any:
    """The bytes alive while an operator runs, as a sum."""
    import sympy

    template = learned.template
    facts, lives = template.reference.facts, template.reference.view.lives
    granule = device_kind(facts.device_type).granule_bytes
    found: Any = sympy.Integer(device_kind(facts.device_type).library_bytes)
    for storage, form in zip(facts.storages, template.forms_of_storages(), strict=True):
        first, last = lives.first[storage.index], lives.last[storage.index]
        if storage.origin is not Origin.WEIGHT and first <= position <= last:
            found += _rounded(form, granule, template.points[0], steps)
    return found + _workspace(template.points, sized, position)


def _rounded(form: Polynomial, granule: int, base: Point, steps: Point) -> Any:
    """Bytes as the allocator rounds them: up to whole granules, unless they are that at every size.

    A multilinear form is, if it is at one size and at those one step away along any of the axes.
    """
    import sympy

    offloaded = (base[0] + steps[0], base[1] + steps[1], base[2] + steps[2])
    on_device = itertools.product(*zip(base, offloaded, strict=True))
    if all((form.at((f, h, w)) or 0) % granule == 0 for f, h, w in on_device):
        return form.symbolic()
    return granule * sympy.ceiling(form.symbolic() / granule)


def _workspace(points: Sequence[Point], sized: dict[Point, SizedGraph], position: int) -> Any:
    """What the kernel allocates, where that is a form too."""
    values = {point: int(graph.line.workspace_bytes[position]) for point, graph in sized.items()}
    form = fit(points, [values[p] for p in points])
    if form is None or any(form.at(point) != value for point, value in values.items()):
        raise DifferentGraph("the workspace of the operator at the peak has no closed form")
    return form.symbolic()


def lattice(points: Sequence[Point], steps: Point, count: int = 4) -> Iterator[Point]:
    """Sizes between the smallest and the largest of some, both included."""
    axes = []
    for a, b, step in zip(*corners(points), steps, strict=True):
        number = 0 if step == 0 else (b - a) // step
        chosen = {round(i * number / (count - 1)) for i in range(count)} if number else {0}
        axes.append([a + n * step for n in sorted(chosen)])
    for frames in axes[0]:
        for height in axes[1]:
            yield from ((frames, height, width) for width in axes[2])
