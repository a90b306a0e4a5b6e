"""Split, run, join equals run: every free factor of every operator, in ragged slices, in float64."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch._ops import OpOverload

from sicompiler.axes.factor_map import FactorKind, FactorSlicing
from sicompiler.axes.registry import rules
from tests.rules.draw import SAMPLERS
from tests.rules.samples import Sample, run_slice, same, sample, write

OPERATORS = sorted((target for target in rules() if target in SAMPLERS), key=str)
# Few examples for each of some 370 operators; `make test-deep` looks further.
EXAMPLES = max(12, hypothesis.settings().max_examples // 8)


def test_every_rule_has_samples() -> None:
    bare = sorted(str(target) for target in rules() if target.namespace == "aten" and target not in SAMPLERS)
    assert not bare, f"write a sampler in tests/rules/samples_*.py for {', '.join(bare)}"


@pytest.mark.parametrize("target", OPERATORS, ids=str)
@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(data=st.data())
def test_slices_give_the_whole(target: OpOverload, data: st.DataObject) -> None:
    found = sample(target, lambda options: data.draw(st.sampled_from(options)))
    _check_sizes(found)
    for factor, size in found.map.sizes.items():
        if size > 1 and found.map.kind(factor) in (FactorKind.FREE, FactorKind.REDUCE):
            outer = data.draw(st.sampled_from([n for n in range(1, size) if size % n == 0]))
            inner = data.draw(
                st.sampled_from([n for n in range(1, size) if (size // outer) % n == 0 and n * outer < size])
            )
            step = data.draw(st.integers(1, size // outer // inner))
            _check(found, FactorSlicing(factor, outer, size // outer // inner, inner), step)


def _check(found: Sample, cut: FactorSlicing, step: int) -> None:
    kind, text = found.map.kind(cut.factor), f"{found.target} {found.map}: {cut}, {step} at a time"
    joined = [torch.zeros_like(result, memory_format=torch.contiguous_format) for result in found.whole]
    for start in range(0, cut.size, step):
        parts = run_slice(found, cut, start, min(step, cut.size - start))
        for whole, part, dims in zip(joined, parts, found.map.results, strict=True):
            place = found.map.place(dims, cut)
            if kind is FactorKind.REDUCE:
                assert place is None, f"{text}: a REDUCE factor is in a result"
                whole += part
            else:
                assert place is not None, f"{text}: a free factor has to be in every result"
                write(whole, place, start, part)
    for ours, theirs in zip(joined, found.whole, strict=True):
        assert same(found, ours, theirs), f"{text}: off by {(ours - theirs).abs().max()}"


def _check_sizes(found: Sample) -> None:
    """The factors of a dim multiply to its size, but for windows, whose size is that of the result."""
    for spec, dims in zip(
        (*found.call.operands, *found.call.results), (*found.map.operands, *found.map.results), strict=True
    ):
        assert len(spec.shape) == len(dims)
        for size, names in zip(spec.shape, dims, strict=True):
            if not any(found.map.kind(name) is FactorKind.WINDOW for name in names):
                assert math.prod(found.map.sizes[name] for name in names) == size, str(found.map)
