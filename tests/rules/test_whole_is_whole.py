"""A factor marked whole, or with statistics, must come out different when it is sliced all the same."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch._ops import OpOverload

from sicompiler.axes.factor_map import FactorKind, FactorSlicing
from sicompiler.axes.registry import rules
from tests.rules.draw import SAMPLERS
from tests.rules.samples import Sample, narrow, run_slice, same, sample, seeded
from tests.rules.samples_pointwise import pointwise_call

pytestmark = pytest.mark.pure


aten = torch.ops.aten

SEEDS = 20

# Factors that are whole although slices of them happen to join: the beginning of their names, and the reason.
LENT = "the operand lends its dtype only, and a free factor has to be in the result"
COPIES = "every slice is the same copy: there is nothing to gain"
DECLARED: dict[OpOverload, tuple[str, str]] = {
    **dict.fromkeys((t for t in SAMPLERS if t.name().endswith("d") and "upsample_nearest" in t.name()), ("r", COPIES)),
    **dict.fromkeys((aten.new_empty.default, aten.new_full.default), ("o", LENT)),
    **dict.fromkeys((aten.new_ones.default, aten.new_zeros.default), ("o", LENT)),
    **dict.fromkeys((aten.to.other, aten.type_as.default), ("", LENT)),
}

WHOLE_SOMEWHERE = sorted(
    (target for target, found in SAMPLERS.items() if target in rules() and found is not pointwise_call), key=str
)


@pytest.mark.parametrize("target", WHOLE_SOMEWHERE, ids=str)
def test_slicing_a_whole_factor_shows(target: OpOverload) -> None:
    joins: dict[str, set[bool]] = defaultdict(set)
    for seed in range(SEEDS):
        found = sample(target, seeded(seed))
        for factor, size in found.map.sizes.items():
            if size > 1 and found.map.kind(factor) in (FactorKind.WHOLE, FactorKind.STATS):
                joins[factor].add(_slices_join(found, FactorSlicing(factor, 1, size, 1)))
    shy = {factor for factor, seen in joins.items() if seen == {True}}
    if target in DECLARED:
        prefix, reason = DECLARED[target]
        assert any(factor.startswith(prefix) for factor in shy), f"{target} needs no exception: {reason}"
        shy = {factor for factor in shy if not factor.startswith(prefix)}
    assert not shy, f"{target} can be sliced along {sorted(shy)}, the last one: {found.map}"


def _slices_join(found: Sample, cut: FactorSlicing) -> bool:
    """Whether slices give the whole result: piece by piece, by adding up, or each for itself."""
    slices = [(0, cut.size - 1), (cut.size - 1, 1)]  # of length 1: operators that squeeze show it
    try:
        parts = [run_slice(found, cut, start, length) for start, length in slices]
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError):
        return False
    if any(len(results) != len(found.whole) for results in parts):
        return False
    for position, (whole, dims) in enumerate(zip(found.whole, found.map.results, strict=True)):
        pieces = [results[position] for results in parts]
        place = found.map.place(dims, cut)
        if place is not None:
            expected = [narrow(whole, place, start, length) for start, length in slices]
            if not all(same(found, ours, theirs) for ours, theirs in zip(pieces, expected, strict=True)):
                return False
        elif not all(same(found, piece, whole) for piece in pieces):
            adds_up = pieces[0].shape == pieces[1].shape and pieces[0].dtype != torch.bool
            if not adds_up or not same(found, pieces[0] + pieces[1], whole):
                return False
    return True
