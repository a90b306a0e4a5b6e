"""The benchmarks by name, e.g. `make bench BENCH_ARGS="full_width svd --rounds 3"`; planning by default."""

from __future__ import annotations

import sys

from benchmarks import (
    coverage,
    demo_quality,
    demo_sheet,
    full_width,
    guards,
    planning,
    random_calls,
    random_layouts,
    random_modules,
    seconds,
)

BENCHMARKS = {
    "coverage": coverage.main,
    "demo_quality": demo_quality.main,
    "demo_sheet": demo_sheet.main,
    "full_width": full_width.main,
    "guards": guards.main,
    "planning": planning.main,
    "random_calls": random_calls.main,
    "random_layouts": random_layouts.main,
    "random_modules": random_modules.main,
    "seconds": seconds.main,
}


def main() -> None:
    """Run the benchmark named first on the command line."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else "planning"
    if name not in BENCHMARKS:
        sys.exit(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    BENCHMARKS[name]()


if __name__ == "__main__":
    main()
