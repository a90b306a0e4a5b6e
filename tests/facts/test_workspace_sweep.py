"""The memory of every operator with an axis rule: what its kernel allocates never exceeds what is predicted."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.axes.factor_map import FactorKind, FactorSlicing, Slicing
from sicompiler.axes.registry import rules
from sicompiler.axes.resize import copying_twin, resize
from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.table import COLUMNS, has_row, workspace_bytes
from sicompiler.ops.slices import slice_view
from sicompiler.planners.op_costs import shortened
from sicompiler.regions.view import READS_STRIDED, narrows_well
from sicompiler.units import KIB, MIB
from tests.kernel_calls import LAYOUTS, LargeDraw, allocated, arguments, calls, fact
from tests.rules.draw import SAMPLERS
from tests.rules.samples import Sample, sample_of, with_tensors

aten = torch.ops.aten
ops = torch.ops.sicompiler

OPERATORS = sorted(rules(), key=str)
DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
CLOSENESS = 0.15  # of operands, results and workspace together, where those are over 1 MiB

operators = pytest.mark.parametrize("target", OPERATORS, ids=str)


@pytest.mark.parametrize("device_type", sorted(COLUMNS))
def test_every_operator_with_a_rule_has_a_row(device_type: str) -> None:
    missing = [str(target) for target in OPERATORS if not has_row(target, device_type)]
    assert not missing, f"write down what {', '.join(missing)} allocate, be it nothing (facts/workspace/families.py)"


def test_every_operator_with_a_rule_is_swept() -> None:
    missing = [str(target) for target in OPERATORS if target not in SAMPLERS]
    assert not missing, f"write a sampler in tests/rules/samples_*.py for {', '.join(missing)}"


def test_an_operator_nobody_measured_copies_its_operands() -> None:
    x, index = torch.zeros(6, 5), torch.zeros(7, dtype=torch.int64)
    for device_type in COLUMNS:
        for target in (aten.index_add.default, torch.ops.aten.renorm.default):
            assert not has_row(target, device_type)
            assert workspace_bytes(target, [fact(x), fact(index)], [fact(x)], device_type) >= x.nbytes + index.nbytes


@operators
def test_nothing_is_allocated_beyond_the_prediction(target: OpOverload) -> None:
    ran = 0
    for words, done in calls(target, 8 if DEEP else 1, every_layout=DEEP):
        ran += 1
        assert done.measured <= done.predicted, words
    assert ran > 0, "no kernel took any of the calls"


@operators
@pytest.mark.slow
def test_predictions_are_close(target: OpOverload) -> None:
    for words, done in calls(target, 6, every_layout=True, least=MIB // 3):
        if done.total > MIB:
            assert done.predicted <= done.measured + CLOSENESS * done.total, words


@operators
def test_slices_allocate_no_more_than_the_planner_takes_them_to(target: OpOverload) -> None:
    """A slice as a loop's body sees it, a view or a dense copy, against the whole tensor's facts cut short."""
    for seed in range(12 if DEEP else 1):
        for layout in LAYOUTS if DEEP else ("dense", "transposed"):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                try:
                    args, kwargs = arguments(target, seed, dtype, layout, draw=LargeDraw)
                    whole = sample_of(target, *args, **kwargs)
                except (RuntimeError, NotImplementedError):
                    continue
                for factor, size in whole.map.sizes.items():
                    if size > 1 and whole.map.kind(factor) is FactorKind.FREE:
                        for length in {1, max(1, size // 3)}:
                            _check_slice(whole, FactorSlicing(factor, 1, size, 1), length)


def _check_slice(whole: Sample, cut: FactorSlicing, length: int) -> None:
    operands = [whole.map.place(dims, cut) for dims in whole.map.operands]
    results = [whole.map.place(dims, cut) for dims in whole.map.results]
    target = copying_twin(whole.target)
    strided = target in READS_STRIDED or torch.Tag.pointwise in target.tags
    parts = [_part(t, s, length, strided=strided) for t, s in zip(whole.tensors, operands, strict=True)]
    args, kwargs = with_tensors(whole.target, whole.args, whole.kwargs, iter(parts))
    place = results[0]
    assert place is not None
    entries = place.outer * place.inner
    args, kwargs = resize(
        whole.target, args, kwargs, whole.whole[0].dim(), place.dim, entries * length, old_size=entries * place.size
    )

    def planned(parts: list[Tensor], made: list[Tensor]) -> tuple[list[TensorFact], list[TensorFact]]:
        def cut_short(tensors: list[Tensor], slicings: list[Slicing | None]) -> list[TensorFact]:
            pairs = zip(tensors, slicings, strict=True)
            return [shortened(fact(t), s, None if s is None else length * s.inner) for t, s in pairs]

        return cut_short(whole.tensors, operands), cut_short(list(whole.whole), results)

    try:
        done = allocated(target, args, kwargs, facts=planned)
    except RuntimeError:
        return  # a view of a slice: the planner copies the slice
    shapes = [(tuple(t.shape), t.stride()) for t in whole.tensors]
    assert done.measured <= done.predicted, f"{whole.target} {whole.map} {shapes}: {length} of {cut}: {done}"


def _part(tensor: Tensor, slicing: Slicing | None, length: int, *, strided: bool) -> Tensor:
    if slicing is None:
        return tensor
    if slicing.outer == 1 and (strided or narrows_well(fact(tensor), slicing)):
        return slice_view(tensor, slicing.dim, 1, slicing.inner, 0, length)
    copied: Tensor = ops.copy_slice(tensor, slicing.dim, slicing.outer, slicing.inner, 0, length)
    return copied


def test_numbers_are_counted() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    calls_with_numbers = (
        (aten.add.Tensor, (x, 1.5)),
        (aten.mul.Scalar, (x, 2)),
        (aten.where.ScalarOther, (x > 0, x, 1)),
    )
    for target, args in calls_with_numbers:
        done = allocated(target, args, {})
        assert 0 < done.measured <= done.predicted <= 4 * KIB, target
