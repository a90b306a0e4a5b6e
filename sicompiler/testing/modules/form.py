"""What the blocks of a random module pass on: how a video lies in a tensor, and what a block is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

# How models lay out a video, by the name we give the layout. Letters: batch, channels, frames, height, width.
KINDS: dict[str, tuple[str, ...]] = {
    "video": ("b", "c", "f", "h", "w"),
    "frames": ("bf", "c", "h", "w"),
    "tokens": ("bf", "hw", "c"),
    "temporal": ("bhw", "f", "c"),
    "sequence": ("b", "fhw", "c"),
    "signal": ("bhw", "c", "f"),
    "last": ("b", "f", "h", "w", "c"),
}
CHANNELS_LAST = ("tokens", "sequence", "temporal", "last")
CHANNELS_SECOND = ("frames", "video", "signal")


@dataclass(frozen=True)
class ValueForm:
    """The layout and sizes of one value.

    Attributes:
        kind: a key of `KINDS`.
        b, c, f, h, w: batch, channels, frames, height, width.
    """

    kind: str
    b: int
    c: int
    f: int
    h: int
    w: int

    @property
    def shape(self) -> list[int]:
        """Shape of the tensor."""
        return [math.prod(getattr(self, letter) for letter in group) for group in KINDS[self.kind]]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def channel_dim(self) -> int:
        """The dim of the channels."""
        return KINDS[self.kind].index("c")

    def to(self, **changes: Any) -> ValueForm:
        """A form with some of it changed."""
        return replace(self, **changes)


class BlockCall(NamedTuple):
    """What a module was called with beside its main input, and what its blocks have made so far.

    Attributes:
        time: [b, 8], an embedding of the step; or None.
        context: [b, 3, 8], an encoded prompt; or None.
        earlier: the input of the module and the result of every block before this one.
    """

    time: torch.Tensor | None
    context: torch.Tensor | None
    earlier: Sequence[torch.Tensor]


class Block(nn.Module):
    """One step of a random module, written as a model's author would: `forward(x, call)`.

    A subclass is made from what draws its options and the form of its operand; it sets `form`, or raises `Unfit`.

    Attributes:
        kinds: layouts that the block takes.
        form: of the result.
        note: options that were drawn, for people.
    """

    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)
    form: ValueForm
    note: str = ""

    def extra_repr(self) -> str:
        """The options, and what the block returns."""
        return f"{self.note} -> {self.form.kind} {self.form.shape}".strip()


class Unfit(Exception):
    """A block can't follow a value of this form: another one is drawn."""


def need(condition: bool) -> None:
    """Raise `Unfit` unless a condition holds."""
    if not condition:
        raise Unfit


def long_dims(form: ValueForm) -> list[int]:
    """The dims of more than one entry; `Unfit` where there is none."""
    found = [dim for dim, size in enumerate(form.shape) if size > 1]
    need(bool(found))
    return found
