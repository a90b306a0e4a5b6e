"""What a region is, as a value: its operators, and the whole values that its loop reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.table import Operand, OpSlicing
from sicompiler.regions.halo import Halos


@dataclass(frozen=True)
class RegionRead:
    """A whole value that the loop's body reads slice by slice.

    Attributes:
        value: the node and result read.
        slicing: where the axis sits in it.
        first, last: positions of the first and last operator of the body that needs the slice.
        copies: whether each slice is copied into a dense tensor, rather than read through a view.
    """

    value: Operand
    slicing: Slicing
    first: int
    last: int
    copies: bool


@dataclass(frozen=True)
class Output:
    """A sliced value that is needed after the loop, and so is written into a whole tensor.

    Attributes:
        value: the node and result.
        slicing: where the axis sits in it; None for statistics, which merge.
        reuses: an input that dies in the region and whose memory the result takes over, or None.
    """

    value: Operand
    slicing: Slicing | None
    reuses: Operand | None


@dataclass(frozen=True)
class Region:
    """Operators `start <= position < stop`, cut together along one axis of `size`.

    Attributes:
        start, stop: positions in the schedule.
        seed: the slicing of the result of the first operator.
        size: length of the axis.
        sliced: how each operator in the body is sliced, by position.
        hoisted: positions of operators that run whole before the loop.
        reads: what the body narrows.
        outputs: what the body writes.
        halos: what the values of the body hold, if there is a window among its operators; else the slices alone.
    """

    start: int
    stop: int
    seed: Slicing
    size: int
    sliced: Mapping[int, OpSlicing]
    hoisted: tuple[int, ...]
    reads: tuple[RegionRead, ...]
    outputs: tuple[Output, ...]
    halos: Halos | None = None
