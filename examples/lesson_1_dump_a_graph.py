"""Lesson 1: look at a model the way sicompiler does, stage by stage.

A model is captured once by `torch.export`, under fake tensors: nothing of its size is allocated. From then on it is a
plain `torch.fx` graph, and every stage can be printed as readable Python, with shapes and the bytes alive at each step:

    captured    what torch.export gives: one line an operator, parameters are inputs of the graph; dropout is off
    clean       without what changes nothing: `x * 1`, `x / 1`, copies that are none, dead code
    legal       in the operators that plans are made for: each group norm is two, statistics and their application
    rewritten   with the regions of a plan as loops over slices

Run it: `python examples/lesson_1_dump_a_graph.py`. On the command line, `sicompiler dump MODEL --stage clean` does the
same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from sicompiler.api import prepare
from sicompiler.capture import Program
from sicompiler.compiler.planner import rewrite
from sicompiler.passes.manager import stages
from sicompiler.reports.dump import text
from sicompiler.reports.steps import listing


class Block(nn.Module):
    """A video block in small, on frames [f, c, h, w]: widen, activate, narrow, add, normalise over all frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.up, self.down = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, frames: Tensor) -> Tensor:
        frames = frames + self.down(self.dropout(silu(self.up(frames)))) / 1.0
        normed: Tensor = self.norm(frames.transpose(0, 1).unsqueeze(0))
        return normed.squeeze(0).transpose(0, 1)


def main() -> None:
    torch.manual_seed(0)
    model, frames = Block(8).eval(), torch.randn(6, 8, 32, 32)
    shown: set[str] = set()

    def show(stage: str, program: Program) -> None:
        """An observer: the pass manager calls it with every finished stage."""
        if stage not in shown:
            shown.add(stage)
            print(text(listing(program), f"stage {stage}"))

    # Everything up to choosing a plan. The planner can then answer for any budget.
    program, planner = prepare(model, (frames,), {}, name="block", observer=show)

    # The plan with the lowest peak, carried out. Look for the `for` loop, and what its body reads in slices and writes.
    # Its sizes and live bytes are those of the first slice. The norm needs all frames before it can scale the first:
    # that is why it is two operators. Where no loop parts the two, and the input is contiguous, they are one again.
    floor_bytes, culprit = planner.floor()
    plan = planner.plan(floor_bytes)
    rewrite(program, plan, observer=show)

    print("stages:", ", ".join(stage for stage in stages() if stage in shown))
    print(f"peak: {planner.unsliced_bytes} bytes whole, {floor_bytes} bytes sliced, set by {culprit}")


if __name__ == "__main__":
    main()
