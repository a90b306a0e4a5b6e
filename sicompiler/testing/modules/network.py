"""Random modules: PyTorch code as users write it, drawn block by block from a seed or by Hypothesis.

module, args, kwargs = random_network(seed=3)
print(module)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sicompiler.testing.builder import SMALL, Draw, Scale
from sicompiler.testing.modules import attention, convolutions, gates, moves, norms, products, slices
from sicompiler.testing.modules.form import Block, BlockCall, Unfit, ValueForm
from sicompiler.testing.modules.moves import Rearrange
from sicompiler.testing.modules.products import Concatenate, Skip

FAMILIES: tuple[tuple[type[Block], ...], ...] = (
    convolutions.BLOCKS,
    attention.BLOCKS,
    norms.BLOCKS,
    gates.BLOCKS,
    moves.BLOCKS,
    slices.BLOCKS,
    products.BLOCKS,
)
OUTPUTS = (
    *("one", "one", "tuple", "pair", "dict", "view", "twice", "input", "input view", "scalar", "number", "slices"),
    *("normed", "list"),
)
MOST_NUMBERS = 2**18  # of one value
# Values of half a MiB, peaks of several: enough to hold predictions to, and quick in float64.
WIDE = Scale(batch=(2, 1), frames=(6, 4, 5), space=(16, 12, 20), channels=(16, 8))

Drawn = tuple["RandomNetwork", tuple[torch.Tensor, ...], dict[str, torch.Tensor]]


class RandomNetwork(nn.Module):
    """Blocks one after the other, some of which also read what earlier ones made.

    Args:
        blocks: in the order they run; a block may stand in it twice, and shares its weights then.
        output: a word of `OUTPUTS`.
        other: which earlier value is returned too, where more than one is.
    """

    def __init__(self, blocks: Sequence[Block], output: str, other: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.output, self.other = output, other

    def extra_repr(self) -> str:
        """What is returned."""
        return f"output={self.output!r}, other={self.other}"

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None, context: torch.Tensor | None = None) -> Any:
        """Run the blocks.

        Args:
            x: the video, in the layout of the first block.
            time: [b, 8].
            context: [b, 3, 8].
        """
        made = [x]
        for block in self.blocks:
            made.append(block(made[-1], BlockCall(time, context, made)))
        return self._returned(made[-1], made[self.other], x)

    def _returned(self, last: torch.Tensor, other: torch.Tensor, x: torch.Tensor) -> Any:
        forms: dict[str, Callable[[], Any]] = {
            "one": lambda: last,
            "tuple": lambda: (last,),
            "pair": lambda: (last, other),
            "list": lambda: [last, [other, None]],
            "dict": lambda: {"sample": last, "aux": {"other": other, "none": None}},
            "view": lambda: (last.flatten(1), last, other.transpose(0, 1)),
            "twice": lambda: (last, last, other),
            "input": lambda: (x, last),
            "input view": lambda: {"sample": last, "first": x[:, :1], "turned": x.movedim(1, -1)},
            "scalar": lambda: (last, last.mean(), other.sum()),
            "number": lambda: (last, last.shape[0], 0.5, "done"),
            "slices": lambda: last.chunk(2, dim=1),
            "normed": lambda: last / last.norm().clamp(min=1.0),
        }
        return forms[self.output]()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        yield


def draw_network(
    choose: Callable[[Sequence[Any]], Any], size: int = 4, *, scale: Scale = SMALL, seed: int = 0
) -> Drawn:
    """Draw a module by whatever chooses: a random generator, or Hypothesis, which then also shrinks it.

    Args:
        choose: picks one of the given options; the first is the simplest.
        size: how many blocks it has, not counted those that only bring a value into the layout the next one takes.
        scale: what sizes to draw from.
        seed: of the weights and inputs.

    Returns:
        The module in float64 and eval mode, args and kwargs of a call.
    """
    draw = Draw(choose)
    with _seeded(seed):
        options = (scale.batch, scale.channels, scale.frames, scale.space, scale.space)
        b, c, f, h, w = (draw.pick(o) for o in options)
        kind = draw.pick(("video", "frames", "tokens", "sequence", "last"))
        builder = _ModuleBuilder(draw, ValueForm(kind, b, c, f, h, w))
        for _ in range(size):
            builder.grow()
        output, other = draw.pick(OUTPUTS), draw.pick(range(len(builder.forms)))
        module = RandomNetwork(builder.blocks, output, other).double().eval().requires_grad_(False)
        return module, (builder.x,), builder.kwargs


class _ModuleBuilder:
    """Grows a module and runs it on the way: a block that fails on what came before is a mistake of ours."""

    def __init__(self, draw: Draw, form: ValueForm) -> None:
        self.draw = draw
        self.forms, self.blocks = [form], list[Block]()
        self.x = self._input(form)
        self.kwargs: dict[str, torch.Tensor] = {}
        if draw.flag():
            self.kwargs["time"] = torch.randn(form.b, 8, dtype=torch.float64)
        if draw.flag():
            self.kwargs["context"] = torch.randn(form.b, 3, 8, dtype=torch.float64)
        self.made = [self.x]

    def _input(self, form: ValueForm) -> torch.Tensor:
        """The main input: row-major, or a permuted, channels-last or narrowed view as callers hand over."""
        how = self.draw.pick(("dense", "dense", "dense", "permuted", "narrowed"))
        shape = form.shape
        if how == "permuted":
            return torch.randn(shape[0], *shape[2:], shape[1], dtype=torch.float64).movedim(-1, 1)
        if how == "narrowed":
            return torch.randn(shape[0], *shape[1:-1], shape[-1] + 2, dtype=torch.float64)[..., 1:-1]
        return torch.randn(shape, dtype=torch.float64)

    def grow(self) -> None:
        """Add a block; and before it, if need be, one that brings the value into a layout it takes."""
        draw, form = self.draw, self.forms[-1]
        shared = [block for block, before in zip(self.blocks, self.forms, strict=False) if before == form]
        repeats = draw.pick((False, False, False, False, True))
        if shared and repeats:
            return self._add(draw.pick(shared))
        # Half of the blocks are drawn among those that take the value as it lies: models don't move it all the time.
        fitting = [tuple(k for k in family if form.kind in k.kinds) for family in FAMILIES]
        families = tuple(f for f in fitting if f) if draw.flag() else FAMILIES
        chosen = draw.pick(draw.pick(families))
        if form.kind not in chosen.kinds:
            self._add(Rearrange(draw, form, draw.pick(chosen.kinds)))
            form = self.forms[-1]
        try:
            block = chosen(draw, form, self.forms) if issubclass(chosen, Skip | Concatenate) else chosen(draw, form)
        except Unfit:
            return None
        return self._add(block) if block.form.numel <= MOST_NUMBERS else None

    def _add(self, block: Block) -> None:
        call = BlockCall(self.kwargs.get("time"), self.kwargs.get("context"), self.made)
        made = block.double().eval()(self.made[-1], call)
        assert list(made.shape) == block.form.shape, f"{block} after {self.forms[-1]} made {list(made.shape)}"
        self.blocks.append(block)
        self.forms.append(block.form)
        self.made.append(made)


def random_network(seed: int, *, scale: Scale = SMALL) -> Drawn:
    """A random module: equal for equal seeds.

    Args:
        seed: of the structure, weights and inputs.
        scale: what sizes to draw from.

    Returns:
        The module in float64 and eval mode, args and kwargs of a call.
    """
    choose = random.Random(seed).choice
    return draw_network(choose, int(choose(range(1, 9))), scale=scale, seed=seed)
