"""Random models: valid graphs over the operators of video diffusion, drawn from a seed or by Hypothesis.

A model is grown operator by operator as an fx graph, so that it prints as the Python it runs:

    module, args, kwargs = random_module(seed=3, size=12)
    print(module.code)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sicompiler.testing.builder import SMALL, Builder, Draw, Scale, Value
from sicompiler.testing.layouts import FACTORS
from sicompiler.testing.steps import STEPS


def draw_module(
    choose: Callable[[Sequence[Any]], Any], size: int = 8, *, scale: Scale = SMALL, seed: int = 0
) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Draw a model by whatever chooses: a random generator, or Hypothesis, which then also shrinks it.

    Args:
        choose: picks one of the given options; the first is the simplest.
        size: how many steps the model is grown; each adds one to some twenty operators.
        scale: what sizes to draw from.
        seed: of the weights and inputs.

    Returns:
        The model in float64 and eval mode, args and kwargs of a call.
    """
    draw = Draw(choose)
    b = Builder(draw, scale, seed)
    sizes = tuple(draw.pick(o) for o in (scale.batch, scale.channels, scale.frames, scale.space, scale.space))
    layout = b.layout()
    b.values.append(Value(b.input("x", *layout.shape(dict(zip(FACTORS, sizes, strict=True)))), layout, sizes))
    if draw.flag():
        b.time = b.input("time", sizes[0], 8)
    if draw.flag():
        b.context = b.input("context", sizes[0], 3, 8, keyword=True)
    for _ in range(size):
        # Most steps go on from the newest value; the others make branches, skip connections and values read late.
        back = draw.pick((0, 0, 0, 0, 1, 2, 5))
        value = b.values[max(len(b.values) - 1 - back, 0)]
        grown = draw.pick(STEPS)(b, value)
        if grown is not None:
            b.values.append(grown)
    return b.module(_outputs(b)), tuple(b.args), b.kwargs


def _outputs(b: Builder) -> Any:
    """What the model returns: its last value, and perhaps others, views of them, or one of them twice."""
    form = b.draw.pick(("one", "tuple", "pair", "dict", "view", "twice"))
    last, other = b.values[-1], b.values[b.draw.pick(range(len(b.values)))]
    if form == "one":
        return last.x
    if form == "tuple":
        return (last.x,)
    if form == "pair":
        return (last.x, other.x)
    if form == "dict":
        return {"sample": last.x, "aux": [other.x, None]}
    if form == "view":
        return (last.x, last.x.flatten(1), other.x)
    return (last.x, last.x, other.x)


def random_module(
    seed: int, size: int = 8, *, scale: Scale = SMALL
) -> tuple[fx.GraphModule, tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """A random model: the same one for the same seed and size.

    Args:
        seed: of the structure, weights and inputs.
        size: how many steps the model is grown.
        scale: what sizes to draw from.

    Returns:
        The model in float64 and eval mode, args and kwargs of a call.
    """
    return draw_module(random.Random(seed).choice, size, scale=scale, seed=seed)
