"""Lesson 2: read axis rules, and follow a slicing through a small attention block.

A rule says how the dims of an operator's operands and results are tied together. It prints on one line:

    linear   ([a, b, i], [o, i], [o]) -> ([a, b, o]) reduce={i}

Each dim is a list of factors; the same name is the same axis wherever it occurs. A factor that no `kind={...}` names is
free: running the operator on slices and putting the results together is the whole result. Here rows `a`, `b` and
out-features `o` are free; in-features `i` would give partial sums, so no region is sliced along them.

A `RegionBuilder` grows a region operator by operator. It starts from a slicing of one result and asks each rule what
that means for the other tensors: sliced too, needed whole, or the end of the region.

Run it: `python examples/lesson_2_read_axis_rules.py`. On the command line, `sicompiler explain MODEL --rules` lists the
rules of a model and `sicompiler explain MODEL --node NAME` says what slicing one operator takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sicompiler.api import prepare
from sicompiler.axes.factor_map import Slicing
from sicompiler.regions.builder import RegionBuilder
from sicompiler.regions.view import GraphView


class Attention(nn.Module):
    """Self-attention over tokens, a norm over channels, and a mean over tokens; input [batch, tokens, channels]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        found = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        normed: Tensor = self.norm(found)
        return normed.mean(1)


def follow(view: GraphView, name: str, slicing: Slicing) -> None:
    """Grow a region from the operator `name` and tell what becomes of every operator on the way."""
    names = [node.name for node in view.facts.nodes]
    builder = RegionBuilder(view, names.index(name), slicing)
    print(f"\nslice {name} along {slicing}:")
    while builder.stop < len(names):
        position = builder.stop
        reason = builder.extend()
        if reason is not None:
            print(f"  {names[position]:<30} ends the region: {reason}")
            break
        sliced = builder.sliced.get(position)
        print(f"  {names[position]:<30} {'whole, before the loop' if sliced is None else sliced.results[0]}")
    region = builder.region()
    for read in region.reads:
        print(f"  the body reads {names[read.value[0]]} slice by slice along {read.slicing}")
    for output in region.outputs:
        print(f"  the body writes {names[output.value[0]]}")


def main() -> None:
    torch.manual_seed(0)
    model, tokens = Attention(32, 4).eval(), torch.randn(2, 48, 32)
    _, planner = prepare(model, (tokens,), {})
    view = planner.graph.view

    print("the rules of this model:")
    for position in range(view.facts.num_placeholders, len(view.facts.nodes)):
        print(f"  {view.facts.nodes[position].name:<30} {view.table.map_of(position)}")

    # Queries may be sliced along the tokens, though keys and values come from the same tokens: those stay whole.
    follow(view, "linear", Slicing(1, 1, 48, 1))

    # Out-features of the query are (4 heads, 8 channels each). Heads may be sliced, until the norm needs all channels.
    follow(view, "linear", Slicing(2, 1, 4, 8))

    # The channels of a head may not: attention multiplies them with those of the keys and adds up.
    follow(view, "linear", Slicing(2, 4, 8, 1))

    # And 2 x 8 x 2 is no way to write (4, 8): a slice would take parts of two heads. No factor matches.
    follow(view, "linear", Slicing(2, 2, 8, 2))


if __name__ == "__main__":
    main()
