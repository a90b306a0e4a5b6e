"""One table an operator: what is heavy or has a window has a rule, padding, cost and workspace, or a reason why not.

What is heavy is torch's word, not ours: its counter of operations is asked about sample calls. What has a window is
read off the rules. So a rule that is added without one of its other rows fails here, by the name of the operator.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch._ops import OpOverload
from torch.utils.flop_counter import FlopCounterMode

from sicompiler.axes import padding
from sicompiler.axes.padding import why_not
from sicompiler.axes.registry import rules
from sicompiler.cost import flops_of_call, has_cost
from sicompiler.facts.calls import bind
from sicompiler.facts.workspace import families
from sicompiler.facts.workspace.layout import kernel_call
from sicompiler.facts.workspace.table import COLUMNS, has_row
from tests.kernel_calls import fact
from tests.rules.samples import Sample, run, sample, seeded

aten = torch.ops.aten
ops = torch.ops.sicompiler

SAMPLES = 4
WORDS = r"norm|pool|softmax|upsample|pixel_|pad|conv|attention"  # of operators that are heavy or have a window

# Operators that no captured graph has, and that are asked for their workspace all the same.
NO_RULE = {
    "parts that a composite operator calls, followed on meta tensors": {
        *(aten.convolution.default, aten.native_group_norm.default, aten.native_batch_norm.default),
        *(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default, aten.cummax.default),
        *(aten.cummin.default, aten._fft_c2c.default, aten._fft_c2r.default, aten._fft_r2c.default),
        *(aten.cdist.default, aten.take_along_dim.default, aten.copy_.default),
    },
    "operators that loops are made of": {
        *(ops.copy_slice.default, ops.write_slice_.default, ops.in_order.default, ops.take_over.default),
        *(ops.fetch.default, ops.fetch_slice.default, ops.spill.default, ops.store_slice_.default),
        aten.empty_strided.default,
    },
}


def samples(target: OpOverload) -> list[Sample]:
    return [sample(target, seeded(seed)) for seed in range(SAMPLES)]


@pytest.fixture(scope="module")
def drawn() -> dict[OpOverload, list[Sample]]:
    """Sample calls of every operator with a rule."""
    return {target: samples(target) for target in sorted(rules(), key=str)}


def counted(call: Sample) -> int:
    """Operations of a call, as torch counts them: those of matrix kernels."""
    with FlopCounterMode(display=False) as counter:
        run(call.target, call.args, call.kwargs)
    return int(counter.get_total_flops())


def ours(call: Sample) -> float | None:
    facts = [fact(tensor) for tensor in call.tensors]
    arguments = bind(call.target, call.args, call.kwargs)
    return flops_of_call(kernel_call(call.target, facts, [fact(tensor) for tensor in call.whole], arguments))


def test_what_torch_counts_operations_of_has_a_cost_and_it_is_that(drawn: dict[OpOverload, list[Sample]]) -> None:
    found = {target: [(counted(call), ours(call)) for call in calls] for target, calls in drawn.items()}
    heavy = {target: rows for target, rows in found.items() if any(theirs for theirs, _ in rows)}
    assert {aten.conv2d.padding, aten.linear.default, aten.einsum.default} <= heavy.keys()
    missing = [str(target) for target, rows in heavy.items() if any(known is None for _, known in rows)]
    assert not missing, f"say what {', '.join(missing)} compute (_KERNELS in sicompiler/cost.py)"
    wrong = [
        f"{target}: {known:.0f}, torch counts {theirs}"
        for target, rows in heavy.items()
        for theirs, known in rows
        if target is not aten.einsum.default and theirs and known != theirs
    ]
    assert not wrong, "\n".join(wrong)


def test_the_einsum_of_a_matrix_product_costs_what_the_product_does() -> None:
    left, right = torch.zeros(3, 5), torch.zeros(5, 7)
    for equation in ("ij,jk->ik", "ij,jk"):
        arguments = bind(aten.einsum.default, (equation, [left, right]), {})
        call = kernel_call(aten.einsum.default, [fact(left), fact(right)], [fact(left @ right)], arguments)
        assert flops_of_call(call) == 2 * 3 * 5 * 7


def test_what_has_a_window_has_its_padding(drawn: dict[OpOverload, list[Sample]]) -> None:
    windowed = {
        target: [why_not(target, call.args, call.kwargs) for call in calls if call.map.windows]
        for target, calls in drawn.items()
    }
    assert windowed[aten.conv2d.default]
    missing = [str(target) for target, why in windowed.items() if any("nothing is known" in str(w) for w in why)]
    assert not missing, f"say how the padding of {', '.join(missing)} is taken out (sicompiler/axes/padding.py)"


def test_every_norm_pooling_and_resampling_has_a_cost_that_is_written_down() -> None:
    named = [target for target in rules() if re.search(WORDS, str(target))]
    missing = [str(target) for target in named if not has_cost(target)]
    assert not missing, f"say what {', '.join(missing)} compute, be it 2 an element (sicompiler/cost.py)"


@pytest.mark.parametrize("device_type", sorted(COLUMNS))
def test_what_is_heavy_or_has_a_window_has_workspace_on_every_device(device_type: str) -> None:
    """As every operator with a rule; without the tag `pointwise`, which would pass for a row."""
    named = [target for target in rules() if re.search(WORDS, str(target))]
    missing = [str(target) for target in named if not has_row(target, device_type)]
    assert not missing, f"say what kernels of {', '.join(missing)} allocate on {device_type}"


def test_what_has_any_row_has_a_rule_or_a_reason() -> None:
    rows: dict[str, set[OpOverload]] = {f"workspace on {name}": set(table) for name, table in COLUMNS.items()}
    rows["workspace by family"] = {*families.NOTHING, *families.COPIES, *families.COMPOSITE, *families.REDUCTIONS}
    tables = (padding._CONVOLUTIONS, padding._MAX_POOLS, padding._AVERAGE_POOLS, padding._PADS)
    rows["padding"] = {target for table in (*tables, padding._REPLICATION_PADS) for target in table}
    excused = set().union(*NO_RULE.values())
    missing = [
        f"{target} ({where})"
        for where, targets in rows.items()
        for target in targets
        if target not in rules() and target not in excused
    ]
    assert not missing, f"no axis rule: {', '.join(sorted(missing))}"
    assert not [str(target) for target in excused if target in rules()], "no longer excused"


def test_what_has_a_cost_has_a_rule() -> None:
    from sicompiler import cost

    priced = [*cost._KERNELS, *cost._ELEMENT_FLOPS]
    assert [str(target) for target in priced if target not in rules()] == []
