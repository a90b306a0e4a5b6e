"""Lesson 7: write a planner of your own.

A planner chooses which regions run in slices. It is a function from a `Problem` (the operators, and candidate regions
with their peaks and times for several slice lengths) and a budget to a `Solution`; `problem.solution(path)` makes one
of (row, index) pairs: which candidate, and which of its slice lengths. sicompiler works peak and time of the answer out
again, and refuses regions that do not exist, regions that overlap, and a peak above the budget. So a planner may be
slow or choose badly; it can't be wrong.

This one wants few regions: it cures the highest peak by the longest region over it that fits, in slices as long as
may be.

Run it: `python examples/lesson_7_write_a_planner.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sicompiler
from sicompiler import Problem, Solution


class FeedForward(nn.Module):
    """[batch, tokens, channels] -> the same, eight times as wide in the middle, four times over."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(channels, 8 * channels) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(8 * channels, channels) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            tokens = tokens + down(nn.functional.gelu(up(tokens)))
        return tokens


@sicompiler.register_planner("few-regions")
def few_regions(problem: Problem, budget_bytes: int) -> Solution | None:
    """Until everything fits, take the longest region that fits the budget over the operator where the peak is."""
    path: list[tuple[int, int]] = []
    while True:
        path.sort(key=lambda step: problem.candidates[step[0]].start)
        solution = problem.solution(path)
        if solution.peak_bytes <= budget_bytes:
            return solution
        taken = [problem.candidates[row] for row, _ in path]
        choices = [
            (candidate.stop - candidate.start, -index, row)  # the first slice lengths are the longest
            for row, candidate in enumerate(problem.candidates)
            if candidate.start <= solution.culprit < candidate.stop
            and all(candidate.stop <= other.start or other.stop <= candidate.start for other in taken)
            for index in range(len(candidate.lengths))
            if problem.peaks[row, index] <= budget_bytes
        ]
        if not choices:
            return None
        _, index, row = max(choices)
        path.append((row, -index))


def above_the_budget(problem: Problem, budget_bytes: int) -> Solution:
    """A planner that does not care: nothing is sliced."""
    return problem.solution([])


def main() -> None:
    torch.manual_seed(0)
    model, tokens = FeedForward(32).eval(), torch.randn(1, 1024, 32)
    for planner in ("dp", "few-regions"):
        sicompiler.compile_for_budget(model, "900 KiB", example_inputs=((tokens,), {}), planner=planner)
        plan = sicompiler.report(model).plans[0]
        print(f"{plan.planner}: {len(plan.regions)} regions, {plan.seconds * 1000:.2f} ms predicted")
    print(sicompiler.verify(model, ((tokens,), {})))
    sicompiler.release(model)

    try:
        sicompiler.compile_for_budget(model, "900 KiB", example_inputs=((tokens,), {}), planner=above_the_budget)
    except sicompiler.BadInput as error:
        print(f"refused: {error}")
    try:
        sicompiler.compile_for_budget(model, "900 KiB", planner="shortest")
    except sicompiler.BadInput as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
