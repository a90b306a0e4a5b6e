"""Lesson 5: write an axis rule for an operator of your own.

An operator that sicompiler doesn't know is never sliced. That is safe, and it costs memory: around it everything has to
be whole. `sicompiler explain` lists such operators. A rule is a function from a call to a `FactorMap`, registered with
`@sicompiler.rule`; it has to be *right*, for a wrong one is a wrong picture. So it is proven by running the operator
whole and in slices along every factor it calls free, a ragged last slice included.

The operator here caps values smoothly, by a scale of each channel: `y = cap * tanh(x / cap)`, x [.., c], cap [c]. Every
entry is treated by itself, so every dim is free, and the channels of `cap` are those of `x`.

Run it: `python examples/lesson_5_write_a_rule.py`. CONTRIBUTING.md says how a rule gets into sicompiler itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sicompiler
from sicompiler import FactorMap, OpCall
from sicompiler.api import prepare
from sicompiler.axes.registry import TensorSpec, factor_map, op_call
from sicompiler.reports.explain import missing, rule_rows, verdicts
from sicompiler.units import format_bytes


@torch.library.custom_op("lessons::soft_cap", mutates_args=())
def soft_cap(x: Tensor, cap: Tensor) -> Tensor:
    """The operator, opaque to torch; written without temporaries, as `workspace=` says of it below."""
    return torch.div(x, cap).tanh_().mul_(cap)


@soft_cap.register_fake
def _(x: Tensor, cap: Tensor) -> Tensor:
    return torch.empty_like(x)


class FeedForward(nn.Module):
    """[batch, tokens, channels] -> the same, eight times as wide in the middle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(channels, 8 * channels), nn.Linear(8 * channels, channels)
        self.cap = nn.Parameter(torch.rand(8 * channels) + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = torch.ops.lessons.soft_cap(self.up(tokens), self.cap)
        narrow: Tensor = self.down(hidden)
        return tokens + narrow


def explain(model: nn.Module, tokens: Tensor) -> int:
    """Print what is known of the operator; returns the floor in bytes."""
    _, planner = prepare(model, (tokens,), {})
    view = planner.graph.view
    print("  without a rule:", ", ".join(row.operator for row in missing(rule_rows(view))) or "none")
    head, dims = verdicts(view, "soft_cap")
    print(" ", head)
    for verdict in dims:
        print(f"    dim {verdict.dim}: {'yes' if verdict.sliceable else 'no'}, {verdict.reason}")
    floor_bytes, culprit = planner.floor()
    print(f"  floor {format_bytes(floor_bytes)}, set by {culprit}")
    return floor_bytes


def soft_cap_rule(call: OpCall) -> FactorMap:
    """`([a, b, c], [c]) -> ([a, b, c])`: entry by entry."""
    shape = call["x"].shape
    names = [f"n{d}" for d in range(len(shape) - 1)] + ["c"]
    return FactorMap.of([names, ["c"]], [names], dict(zip(names, shape, strict=True)))


def prove() -> None:
    """Whole against slices, along every factor, in float64: the slices of 3 leave a ragged one of 1 or 2."""
    x, cap = torch.randn(5, 4, 7, dtype=torch.float64), torch.rand(7, dtype=torch.float64) + 1
    shape = TensorSpec(tuple(x.shape), x.dtype)
    call = op_call(torch.ops.lessons.soft_cap.default, (shape, TensorSpec((7,), x.dtype)), {}, (shape,))
    found = factor_map(call)
    print(f"  rule {found}")
    whole = soft_cap(x, cap)
    for dim, name in enumerate(("n0", "n1", "c")):
        caps = cap.split(3) if name == "c" else [cap] * len(x.split(3, dim))
        joined = torch.cat([soft_cap(part, c) for part, c in zip(x.split(3, dim), caps, strict=True)], dim)
        print(f"  sliced along {name}: largest difference {float((joined - whole).abs().max()):.1e}")


def main() -> None:
    torch.manual_seed(0)
    model, tokens = FeedForward(32).eval(), torch.randn(1, 1024, 32)
    print("before:")
    before = explain(model, tokens)

    # Usually a decorator of the rule. Nothing is allocated beside the result; a tanh takes some 25 operations.
    sicompiler.rule(soft_cap, workspace=lambda call: 0, flops=27.0)(soft_cap_rule)
    print("\nproof:")
    prove()
    print("\nafter:")
    after = explain(model, tokens)
    print(f"  the floor is {before / after:.1f} times lower")

    print("\nrun at the new floor:")
    sicompiler.compile_for_budget(model, f"{after} B", example_inputs=((tokens,), {}))
    print(sicompiler.verify(model, ((tokens,), {})))


if __name__ == "__main__":
    main()
