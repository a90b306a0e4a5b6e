"""What the calls of a denoiser in one loop are to its first ones: what is kept of one must not serve another kind."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch

TIME = "timestep"  # what every denoiser of diffusers calls its place in the run; it may come as a number
UNWATCHED = "another graph"

Named = Sequence[tuple[str, Any]]  # every leaf among the inputs, with the name of its argument


class CallKind(NamedTuple):
    """What a call is to the first one of its branch in the loop, without sizes: the same at every input size.

    Attributes:
        call: how its inputs, or the model, differ; empty where they don't. Features of another kind are of no use.
        guidance: how the settings of guidance differ from those the loop began with; features stay what they are, but
            what an error does to the result does not.
    """

    call: str = ""
    guidance: str = ""

    @property
    def told(self) -> str:
        """For people; empty where nothing differs."""
        inputs = f"a call differs from the first one of its loop ({self.call})" * bool(self.call)
        return "; ".join(filter(None, (inputs, self.guidance)))


StepKinds = tuple[CallKind, ...]  # of the calls in one step, by branch


class FirstCalls:
    """The first call of every branch of a loop, with which later ones are compared.

    Args:
        model_key: what a trace depends on of the model, as it is now; asked for only where calls differ.
    """

    def __init__(self, model_key: Callable[[], Hashable]) -> None:
        self._model_key = model_key
        self._keys: dict[int, tuple[Hashable, Hashable]] = {}  # by branch: of the call, of the model
        self._leaves: dict[int, list[tuple[str, object]]] = {}
        self._tensors: dict[int, list[weakref.ref[torch.Tensor] | None]] = {}

    def compared(self, branch: int, key: Hashable, inputs: Named) -> str:
        """How a call differs from the first one of its branch, in words; empty where it does not.

        Args:
            branch: calls since the last step.
            key: all that a trace of this call depends on.
            inputs: of the call.
        """
        if branch not in self._keys:
            self._keys[branch] = key, self._model_key()
            self._leaves[branch] = [(name, _described(name, leaf)) for name, leaf in inputs]
            self._tensors[branch] = [weakref.ref(x) if isinstance(x, torch.Tensor) else None for _, x in inputs]
            return ""
        first, model = self._keys[branch]
        if key != first:
            differs = _differences(self._leaves[branch], inputs)
            if not differs and self._model_key() != model:
                differs = ["the model itself has changed"]
            if differs:
                return "; ".join(differs)
        other = max(self._tensors, key=lambda known: self._shared(known, inputs))
        if self._shared(other, inputs) > self._shared(branch, inputs):
            return f"it takes the place of call {other} of a step"
        return ""

    def _shared(self, branch: int, inputs: Named) -> int:
        """How many of the very tensors that the first call of a branch was given are given here."""
        known = self._tensors[branch]
        return sum(ref is not None and ref() is x for ref, (_, x) in zip(known, inputs, strict=False))


def apart(first: StepKinds, second: StepKinds) -> bool:
    """Whether what is kept of one step is of no use at a later one, as they are of different kinds.

    Args:
        first: the calls of the earlier step.
        second: of the later one.
    """
    if len(second) > len(first):
        return True  # a call there has nothing to be predicted from
    pairs = list(zip(first, second, strict=False))
    return any(a.call != b.call or a.call.startswith(UNWATCHED) for a, b in pairs)


def _described(name: str, leaf: Any) -> object:
    if isinstance(leaf, torch.Tensor):
        return (
            leaf.shape,
            leaf.dtype,
            leaf.device,
        )  # not the strides: first latents often lie otherwise than later ones
    if name == TIME and isinstance(leaf, (int, float)):
        return TIME
    return leaf if isinstance(leaf, (bool, int, float, str, type(None))) else repr(leaf)


def _differences(first: Sequence[tuple[str, object]], inputs: Named) -> list[str]:
    if [name for name, _ in first] != [name for name, _ in inputs]:
        return ["other arguments"]
    rows = [(name, before, _described(name, leaf)) for (name, before), (_, leaf) in zip(first, inputs, strict=True)]
    differences = [_difference(name, before, now) for name, before, now in rows if before != now]
    return list(dict.fromkeys(differences))


def _difference(name: str, before: object, now: object) -> str:
    if not isinstance(before, tuple) or not isinstance(now, tuple):
        plain = not isinstance(before, tuple) and not isinstance(now, tuple)
        return f"{name}: {before} -> {now}" if plain else f"{name}: another argument"
    if before[1] != now[1]:
        return f"{name}: {_short(before[1])} -> {_short(now[1])}"
    if before[0] != now[0]:
        share = Fraction(now[0].numel(), max(before[0].numel(), 1))
        return f"{name}: {share} of the values" if share != 1 else f"{name}: another shape"
    return f"{name}: on {now[2]}"


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
