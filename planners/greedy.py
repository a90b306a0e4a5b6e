"""The greedy planner: cures the highest peak first. The baseline that shows what an exact search gains."""

from __future__ import annotations

from sicompiler.planners.dp import Problem, Solution

Path = list[tuple[int, int]]


def _overlaps(problem: Problem, row: int, path: Path) -> bool:
    candidate = problem.candidates[row]
    return any(
        candidate.start < problem.candidates[other].stop and problem.candidates[other].start < candidate.stop
        for other, _ in path
    )


def solve(problem: Problem, budget_bytes: int) -> Solution | None:
    """Starting unsliced, take at each peak above the budget the quickest region that fits there.

    A region once taken stays. Same signature as `dp.solve`.

    Returns:
        A plan within the budget, or None where this strategy gets stuck (another may fit).
    """
    path: Path = []
    while True:
        path.sort(key=lambda step: problem.candidates[step[0]].start)
        solution = problem.solution(path)
        if solution.peak_bytes <= budget_bytes:
            return solution
        choices = [
            (float(problem.times[row, index]), row, index)
            for row, candidate in enumerate(problem.candidates)
            if candidate.start <= solution.culprit < candidate.stop and not _overlaps(problem, row, path)
            for index in range(len(candidate.lengths))
            if problem.peaks[row, index] <= budget_bytes
        ]
        if not choices:
            return None
        _, row, index = min(choices)
        path.append((row, index))
