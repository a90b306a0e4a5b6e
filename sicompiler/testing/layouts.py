"""Layouts of a video in a tensor: which of batch, channels, frames, height and width share a dim, and in what order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FACTORS = "bcfhw"

# As models lay their values out: tensors of videos, of frames, tokens within frames, tokens along time, and odd ones.
LAYOUTS = (
    "b c f h w",
    "b f c h w",
    "(b f) c h w",
    "(b f) (h w) c",
    "(b h w) f c",
    "(b h w) c f",
    "b (f h w) c",
    "b f (h w) c",
    "(f b) c h w",
    "b h w f c",
    "(b h) c f w",
    "(f h w) b c",
    "b c (f h) w",
)


@dataclass(frozen=True)
class Layout:
    """A layout, written as einops does: `(b f) c h w`."""

    groups: tuple[str, ...]

    @staticmethod
    def of(text: str) -> Layout:
        """Read a layout."""
        found = re.findall(r"\(([a-z ]+)\)|([a-z])", text)
        return Layout(tuple((merged or single).replace(" ", "") for merged, single in found))

    def __str__(self) -> str:
        return " ".join(g if len(g) == 1 else "(" + " ".join(g) + ")" for g in self.groups)

    @property
    def order(self) -> str:
        """All factors, major to minor."""
        return "".join(self.groups)

    def shape(self, sizes: Mapping[str, int]) -> list[int]:
        """The shape of a tensor in this layout."""
        return [math.prod(sizes[name] for name in group) for group in self.groups]

    def dim_of(self, factor: str) -> int | None:
        """The dim that holds a factor alone; None if it shares its dim."""
        return self.groups.index(factor) if factor in self.groups else None


def rearrange(x: Any, source: Layout, target: Layout, sizes: Mapping[str, int]) -> Any:
    """Bring a tensor (or a proxy of one) from one layout into another, by reshape, permute and reshape."""
    if source == target:
        return x
    if any(len(group) > 1 for group in source.groups):
        x = x.reshape([sizes[name] for name in source.order])
    order = [source.order.index(name) for name in target.order]
    if order != sorted(order):
        x = x.permute(order)
    if any(len(group) > 1 for group in target.groups):
        x = x.reshape(target.shape(sizes))
    return x


def broadcast(x: Any, held: Sequence[str], layout: Layout, sizes: Mapping[str, int]) -> Any:
    """Make a tensor with the dims `held` broadcast against one in `layout`: merged dims expand, others have size 1.

    Args:
        x: [*sizes of held], in the order of the layout.
        held: the factors that `x` has.
        layout: of what it is added to.
        sizes: of every factor.
    """
    merged = {name for group in layout.groups if len(group) > 1 and set(group) & set(held) for name in group}
    x = x.reshape([sizes[name] if name in held else 1 for name in layout.order])
    if merged:
        x = x.expand([sizes[name] if name in merged or name in held else 1 for name in layout.order])
    kept = {name: sizes[name] if name in merged or name in held else 1 for name in sizes}
    return x.reshape(layout.shape(kept))
