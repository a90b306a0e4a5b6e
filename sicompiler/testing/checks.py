"""A module planned for several budgets and run: is the output the same, and the memory what was predicted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree

import sicompiler
from sicompiler.api import prepare
from sicompiler.compiler.planner import Offload, Planner
from sicompiler.plan import Plan
from sicompiler.runtime.compiled import Executable
from sicompiler.runtime.placement import place, restore
from sicompiler.runtime.verify import Verification, compare

TOLERANCE = 1e-12  # relative error in float64
MEBIBYTE = 2**20
OVER = 1.15  # a peak above one MiB is at most predicted so many times


@dataclass(frozen=True)
class Outcome:
    """One plan of a module, carried out beside the untouched module.

    Attributes:
        plan: what was carried out.
        verification: errors and measured peaks.
    """

    plan: Plan
    verification: Verification

    def problems(self) -> list[str]:
        """What is wrong with it: an output, a peak above its prediction or the budget, a prediction far too high."""
        v, plan, wrong = self.verification, self.plan, []
        where = f"budget {v.budget_bytes} ({_kind(plan)})"
        # A random module may give nothing but rounding (the mean of one number taken away): values are of order one.
        if not min(v.max_rel_error, v.max_abs_error) <= TOLERANCE:
            wrong.append(f"{where}: relative error {v.max_rel_error:.3g}, absolute {v.max_abs_error:.3g}")
        if v.predicted_peak_bytes > v.budget_bytes:
            wrong.append(f"{where}: predicted {v.predicted_peak_bytes} is above the budget")
        more = v.measured_peak_bytes - v.predicted_peak_bytes
        if more > 0:
            wrong.append(f"{where}: measured {v.measured_peak_bytes}, {more} above the prediction")
        measured, predicted = (n - plan.weights_bytes for n in (v.measured_peak_bytes, v.predicted_peak_bytes))
        if measured > MEBIBYTE and predicted > OVER * measured:
            wrong.append(
                f"{where}: predicted {predicted} without weights, {predicted / measured:.2f} times the measured"
            )
        return wrong


def _kind(plan: Plan) -> str:
    """What a plan does, in a few words."""
    words = [f"{len(plan.regions)} loops"]
    words += ["an outer loop"] if plan.outer is not None else []
    words += ["made again"] if plan.rematerialized else []
    words += ["offloaded"] if plan.spilled or plan.streamed else []
    return ", ".join(words)


def four_budgets(planner: Planner, *, offload: bool = False) -> list[tuple[int, Offload]]:
    """Unsliced, two between, and the floor; with `offload` the last two lie below what slicing alone reaches.

    Args:
        planner: of one module.
        offload: whether values and weights may leave the device.
    """
    high, low = planner.unsliced_bytes, planner.floor()[0]
    lowest = planner.floor("auto")[0] if offload else low
    if lowest < low:
        return [(high, "none"), ((high + low) // 2, "none"), ((low + lowest) // 2, "auto"), (lowest, "auto")]
    return [(high, "none"), (low + 2 * (high - low) // 3, "none"), (low + (high - low) // 3, "none"), (low, "none")]


def run_budgets(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, offload: bool = False
) -> list[Outcome]:
    """Plan a module once for each of four budgets, and run each plan that differs from those before.

    Args:
        module: in eval mode, not compiled.
        args: positional inputs.
        kwargs: keyword inputs.
        offload: whether two of the budgets lie below what slicing alone reaches.

    Returns:
        What came of each.
    """
    _, planner = prepare(module, args, kwargs)
    found: dict[Plan, Verification] = {}
    outcomes: list[Outcome] = []
    for budget_bytes, allowed in four_budgets(planner, offload=offload):
        plan = planner.plan(budget_bytes, offload=allowed)
        what = replace(plan, budget_bytes=0, floor_bytes=None, floor_operator="")
        if what not in found:
            compiled = Executable(planner.rewrite(plan), plan)
            found[what] = carry_out(module, args, kwargs, compiled).verification
        outcomes.append(Outcome(plan, replace(found[what], budget_bytes=budget_bytes)))
    return outcomes


def carry_out(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], compiled: Executable) -> Outcome:
    """Run a rewritten module beside the untouched one; streamed weights are where they were, afterwards."""
    device = next(t.device for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
    try:
        before = compare(module, compiled, args, kwargs, before=lambda: place(module, compiled.plan.streamed, device))
        return Outcome(compiled.plan, before)
    finally:
        restore(module, device)


def run_publicly(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], budget_bytes: int, offload: Offload
) -> list[str]:
    """Take a module over by the public functions, call it, verify it, give it back; say what is wrong.

    Args:
        module: in eval mode, not compiled.
        args: positional inputs.
        kwargs: keyword inputs.
        budget_bytes: of weights and all the rest together.
        offload: as `compile_for_budget` takes it.
    """
    with torch.no_grad():
        theirs = module(*args, **kwargs)
    attributes = sorted(module.__dict__)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inputs = [t.clone() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    sicompiler.compile_for_budget(module, f"{budget_bytes}B", example_inputs=(args, kwargs), offload=offload)
    ours = module(*args, **kwargs)
    verification = sicompiler.verify(module, (args, kwargs))
    plan = sicompiler.report(module).plans[-1]
    sicompiler.release(module)
    wrong = Outcome(plan, verification).problems()
    if pytree.tree_structure(ours) != pytree.tree_structure(theirs):
        wrong.append(f"{pytree.tree_structure(ours)} was returned in place of {pytree.tree_structure(theirs)}")
    if sorted(module.__dict__) != attributes:
        wrong.append("a released module has other attributes than before")
    if any(not torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items()):
        wrong.append("a released module has other weights than before")
    after = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if not all(map(torch.equal, inputs, after)):
        wrong.append("the caller's inputs have been written into")
    with torch.no_grad():
        again = module(*args, **kwargs)
    if not all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(pytree.tree_leaves(again), pytree.tree_leaves(theirs), strict=True)
    ):
        wrong.append("a released module gives another output than before")
    return wrong
