"""Lesson 6: how much memory do I need? The peak as a formula, and which sizes fit a budget, from a few captures.

A graph at another size is the same operators with other numbers. Four captures are enough to write every number (dims,
strides, bytes) as a formula in frames F, height H and width W. So the unsliced peak is a formula too: the highest of a
few sums of what is alive. It is exact, to the byte.

What slices can save has no formula. Instead one size is searched in full, and the regions its plans take are looked at
again at the other sizes: each plan made of them is a real one, so what is said to fit does.

`sicompiler fit svd --gb 8` prints such a table for a preset, a diffusers folder or a function of your own.

Run it: `python examples/lesson_6_how_much_memory.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from sicompiler.errors import OverBudget
from sicompiler.scaling.form import Point
from sicompiler.scaling.peak import closed_peak, evaluate
from sicompiler.scaling.points import choose_points
from sicompiler.scaling.sized import SizedCall, SizedModel
from sicompiler.units import format_bytes, parse_bytes

SIZES: list[Point] = [(frames, side, 2 * side) for side in (16, 24, 32) for frames in (8, 16)]


class Block(nn.Module):
    """A feed-forward over the channels of a video [f, h, w, 16], and a mean over its frames."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, video: Tensor) -> Tensor:
        """Run the block."""
        video = video + self.down(gelu(self.up(video)))
        return video - video.mean(0)


def call(point: Point) -> SizedCall:
    """The block and a video of some size."""
    return SizedCall(Block().eval(), (torch.zeros(*point, 16),), {}, "forward")


def main() -> None:
    """Print the formula, compare it with a capture, and print what fits."""
    model = SizedModel("block", call, "cpu", lambda what, done, total: None)
    points = choose_points(SIZES, steps=(1, 8, 8))
    assert points is not None
    learned = model.learn(points)
    print(f"captured at {', '.join('x'.join(map(str, point)) for point in points)}")
    peak = closed_peak(learned, SIZES, steps=(1, 8, 8))
    print(f"unsliced peak: {peak.expression} bytes, at {peak.operators[0]}")

    fresh = (12, 24, 40)
    assert evaluate(peak.expression, fresh) == model.planned(fresh).unsliced_bytes
    print("at 12x24x40 the formula gives what a capture gives, to the byte")

    budget = parse_bytes("3MiB")
    print(f"within {format_bytes(budget)}:")
    for point in SIZES:
        sized = learned.sized(point)
        assert sized is not None
        planner = learned.planner_at(point, sized)
        whole = evaluate(peak.expression, point)
        if whole <= budget:
            says = f"fits whole, {format_bytes(whole)}"
        else:
            try:
                plan = planner.plan(budget)
                peaks = f"{format_bytes(plan.predicted_peak_bytes)} of {format_bytes(whole)}"
                says = f"fits in slices ({len(plan.regions)} sliced loops), {peaks}"
            except OverBudget as error:
                says = f"does not fit: the lowest peak found is {format_bytes(error.floor_bytes)}"
        print(f"  {point[0]:2} frames of {point[1]}x{point[2]}: {says}")


if __name__ == "__main__":
    main()
