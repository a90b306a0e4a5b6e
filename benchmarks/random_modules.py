"""Random modules by their seeds: planned for four budgets each, run, counted. What is wrong is printed, with its seed.

python -m benchmarks random_modules 0 5000
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable

import torch

from sicompiler import testing
from sicompiler.testing.checks import Outcome, run_budgets


def outcomes_of(seed: int) -> list[Outcome]:
    """Every eighth module is large, with peaks of several MiB; every fourth is also offloaded."""
    scale = testing.WIDE if seed % 8 == 7 else testing.SMALL
    module, args, kwargs = testing.random_network(seed, scale=scale)
    return run_budgets(module, args, kwargs, offload=seed % 4 == 2)


def sweep(seeds: Iterable[int]) -> Counter[str]:
    """Run the modules of some seeds; print what is wrong; count modules, plans and what is wrong."""
    count: Counter[str] = Counter()
    for seed in seeds:
        count["modules"] += 1
        try:
            outcomes = outcomes_of(seed)
        except Exception as error:  # a sweep goes on: the next seed may show something else
            last = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {type(error).__name__} at {last.name}:{last.lineno}: {str(error)[:300]}", flush=True)
            count["errors"] += 1
            continue
        count["plans"] += len(outcomes)
        for outcome in outcomes:
            for problem in outcome.problems():
                print(f"seed {seed}: {problem}", flush=True)
                count["wrong"] += 1
    return count


def main() -> None:
    """Run the seeds from the first argument up to the second."""
    parser = argparse.ArgumentParser(prog="random_modules", description=__doc__)
    parser.add_argument("start", type=int, nargs="?", default=0)
    parser.add_argument("stop", type=int, nargs="?", default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began = time.perf_counter()
    count = sweep(range(options.start, options.stop))
    print(", ".join(f"{number} {what}" for what, number in count.items()), f"in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
