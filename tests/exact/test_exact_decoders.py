"""Every tiny VAE: its decoder gives the same output in float64, planned for several budgets and cut in many loops.

Equality is a relative error of 1e-12, as in `test_exact_models`; some decoders compute norms or resample in float32
whatever the dtype of the model, and there it is a few roundings of float32. On the CPU the floor of most video
decoders is the unfolded input of a convolution, which no slice makes smaller, so their plans have few loops; the
rules of their operators are put to the test by loops over as much of the graph as can be cut.
"""

from __future__ import annotations

import pytest

from sicompiler.compiler.planner import Planner
from sicompiler.planners.candidates import Candidate
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.region import Region
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from sicompiler.testing import rewritten, run_program
from tests.zoo import prepared

FLOAT64 = 1e-12
FLOAT32_ISLANDS = {"ltx-vae": 2e-6, "wan-vae": 2e-6}
SLACK_BYTES = 2**12  # numbers and tables of a kernel, which no prediction counts

QUICK = ("svd-vae", "sd-vae")
SLOW = ("ltx-vae", "wan-vae", "cogvideox-vae", "hunyuanvideo-vae", "mochi-vae")
EVERY = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.0])
@pytest.mark.parametrize("name", EVERY)
def test_a_decoder_is_exact_at_any_budget(name: str, share: float) -> None:
    (module, args, kwargs), _, planner, theirs = prepared(name)
    low, high = planner.floor()[0], planner.unsliced_bytes
    plan = planner.plan(low + int((high - low) * share))
    assert plan.phase == "decode"
    assert plan.regions or plan.outer or plan.predicted_peak_bytes == high
    done = planner.rewrite(plan)
    with measure_peak("cpu") as peak:
        ours = run_program(done, module, args, kwargs)
    assert type(ours) is type(theirs)
    assert errors(ours, theirs)[1] <= FLOAT32_ISLANDS.get(name, FLOAT64)
    found = peak.bytes + planner.graph.facts.input_bytes + plan.weights_bytes
    assert found <= plan.predicted_peak_bytes + SLACK_BYTES
    assert plan.predicted_peak_bytes <= 1.05 * found
    assert plan.fits


def widest_loops(planner: Planner, turn: int) -> list[tuple[Region, int]]:
    """Disjoint loops over as many operators as possible, along another axis and in other lengths each turn."""
    search = planner.searches[0]

    def rank(candidate: Candidate) -> tuple[int, int]:
        return candidate.start - candidate.stop, (hash(candidate.seed) + turn) % 7

    found: list[tuple[Region, int]] = []
    taken: set[int] = set()
    for candidate in sorted(search.problem.candidates, key=rank):
        if taken.isdisjoint(range(candidate.start, candidate.stop)):
            walk = RegionBuilder(search.graph.view, candidate.start, candidate.seed)
            while walk.stop < candidate.stop:
                assert walk.extend() is None
            found.append((walk.region(), candidate.lengths[(len(found) + turn) % len(candidate.lengths)]))
            taken.update(range(candidate.start, candidate.stop))
    return sorted(found, key=lambda row: row[0].start)


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("name", EVERY)
def test_a_decoder_in_as_many_loops_as_can_be_is_exact(name: str, turn: int) -> None:
    (module, args, kwargs), _, planner, theirs = prepared(name)
    loops = widest_loops(planner, turn)
    assert sum(len(region.sliced) for region, _ in loops) > len(planner.graph.facts.nodes) // 20
    ours = run_program(rewritten(planner.searches[0].graph, loops), module, args, kwargs)
    assert errors(ours, theirs)[1] <= FLOAT32_ISLANDS.get(name, FLOAT64)
