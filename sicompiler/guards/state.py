"""What one call of a model leaves behind for the next: seen in the trace, where the call really runs as Python."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sicompiler.guards.places import DEFAULTS
from sicompiler.guards.undo import Undo
from sicompiler.guards.walk import ModelDescription
from sicompiler.guards.words import differences, place, shown

FORWARD = "forward"
_PYTHON: Any = random.getstate.__self__  # type: ignore[attr-defined]  # behind the functions of the module
_NUMPY: Any = np.random.get_state.__self__  # type: ignore[attr-defined]


def keep_state(model: torch.nn.Module, method: str) -> Undo:
    """Keep everything a call of a model can write into, to be put back.

    Args:
        model: the model.
        method: the entry point.
    """
    undo = _keep_process()
    walk = ModelDescription(model, None, (method, FORWARD), undo)
    undo.moving = walk.moving
    return undo


def _keep_process() -> Undo:
    """Keep what a call can write into whatever the model is."""
    undo = Undo()
    for generator in (_PYTHON, _NUMPY):
        undo.keep(generator)
    undo.keep_by(lambda: dict(os.environ), _set_environment)
    undo.keep_by(torch.get_default_dtype, torch.set_default_dtype)
    return undo


def _set_environment(variables: Mapping[str, str]) -> None:
    """Set what differs: other threads read the rest meanwhile."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})


@dataclass(frozen=True)
class Moment:
    """What a model could reach at one moment of a trace.

    Attributes:
        facts: by path.
        tensors: by path, those that are no parameters or buffers.
        walk: what was met, with guards.
        undo: puts back what was met, where it was kept.
    """

    facts: Mapping[str, Hashable]
    tensors: Mapping[str, torch.Tensor]
    walk: ModelDescription
    undo: Undo | None = None

    @staticmethod
    def of(
        model: torch.nn.Module,
        call: Callable[..., Any],
        method: str,
        before: Moment | None = None,
        keeps: bool = False,
    ) -> Moment:
        """Look around now.

        Args:
            model: the module that is traced.
            call: what its forward stands for.
            method: the entry point.
            before: an earlier look: where all of its guards hold, there is nothing new to see.
            keeps: whether what is met is kept, to be put back.
        """
        undo = _keep_process() if keeps else None
        with torch._C.DisableTorchFunction():  # a look is no part of the call
            if before is not None and before.walk.holds(model):
                walk = before.walk
            else:
                walk = ModelDescription(
                    model, lambda own: {**own, FORWARD: call}, (method, FORWARD), undo, layouts=False
                )
        facts = dict(walk.facts)
        facts["the random numbers of Python"] = ("random", hash(random.getstate()))
        facts["the random numbers of NumPy"] = ("random", hash(_numpy_state()))
        facts["the environment"] = ("environment", hash(tuple(sorted(os.environ.items()))))
        return Moment(facts, walk.tensors, walk, undo)


@dataclass
class Written:
    """The moments before and after each call of a trace.

    Attributes:
        moments: before the first call, after it, after the second.
        arguments: names of containers among the arguments that a call has changed.
        keeps: whether what there is before the first call is kept, to be put back.
    """

    moments: list[Moment] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    keeps: bool = False

    def paths(self) -> list[str]:
        """What the first call has changed."""
        return differences(self.moments[0].facts, self.moments[1].facts) if self.moments else []

    def leaves_plain(self) -> bool:
        """Whether nothing that the first call has changed is a tensor, before or after."""
        found = [moment.facts.get(path) for path in self.paths() for moment in self.moments[:2]]
        return not any(isinstance(fact, tuple) and fact[0] in ("tensor", "array", "random") for fact in found)

    def rewritten(self) -> list[str]:
        """What the second call has changed again, in a way that is no new tensor of the same layout."""
        first, second = self.moments[1].facts, self.moments[2].facts
        return [path for path in differences(first, second) if _layout(first.get(path)) != _layout(second.get(path))]

    def defaults(self) -> list[str]:
        """What the first call has changed for all of the process: the dtype or device of new tensors."""
        return [path for path in self.paths() if path in DEFAULTS]

    def is_random(self, path: str) -> bool:
        """Whether what was changed is the state of a generator."""
        fact: Any = self.moments[0].facts.get(path)
        return fact is not None and fact[0] == "random"

    def shown(self, path: str) -> tuple[str, str]:
        """One change, for people: where it is, "`blocks.1.counter`", and the values, ": 3 -> 4", where it has any."""
        before, after = (moment.facts.get(path) for moment in self.moments[:2])
        plain = before is not None and after is not None and before[0] == after[0] == "plain"  # type: ignore[index]
        return place(path), f": {shown(before)} -> {shown(after)}" if plain else ""


def _numpy_state() -> tuple[Any, ...]:
    _, words, *rest = np.random.get_state(legacy=True)
    return (words.tobytes(), *rest)  # type: ignore[union-attr]


def _layout(fact: Any) -> Any:
    """The fact of a tensor without its identity."""
    return ("tensor", *fact[3:5]) if fact is not None and fact[0] == "tensor" else fact


def watched(
    model: torch.nn.Module, call: Callable[..., Any], own: Callable[..., Any], method: str, written: Written
) -> Callable[..., Any]:
    """A call that is looked at before and after.

    Args:
        model: the module that is traced.
        call: what its forward stands for.
        own: the method of the model that the call leads to.
        method: the entry point.
        written: where to write down what is seen.
    """

    @functools.wraps(call)
    def looked_at(*args: Any, **kwargs: Any) -> Any:
        written.moments.append(Moment.of(model, own, method, keeps=written.keeps))
        held = _containers((args, kwargs))
        result = call(*args, **kwargs)
        written.arguments += [path for path, (container, content) in held.items() if not _still(container, content)]
        written.moments.append(Moment.of(model, own, method, written.moments[-1]))
        return result

    return looked_at


def twice(
    model: torch.nn.Module,
    call: Callable[..., Any],
    own: Callable[..., Any],
    method: str,
    paths: list[str],
    written: Written,
) -> Callable[..., Any]:
    """Two calls, one after the other, with inputs of their own.

    Gives the results of both, and the tensors that each left behind at some paths.

    Args:
        model: the module that is traced.
        call: what its forward stands for.
        own: the method of the model that the call leads to.
        method: the entry point.
        paths: what the first call changes.
        written: where to write down what is seen.
    """

    def both(first: Any, first_named: Any, second: Any, second_named: Any) -> Any:
        written.moments.append(Moment.of(model, own, method))
        one = call(*first, **first_named)
        written.moments.append(Moment.of(model, own, method))
        other = call(*second, **second_named)
        written.moments.append(Moment.of(model, own, method, written.moments[-1]))
        left = [
            {path: moment.tensors[path] for path in paths if path in moment.tensors} for moment in written.moments[1:]
        ]
        return one, other, *left

    return both


def _containers(inputs: Any) -> dict[str, tuple[Any, Any]]:
    """Lists and dicts among the arguments, with their contents."""
    args, kwargs = inputs
    held: dict[str, tuple[Any, Any]] = {}
    left = [(f"argument {index}", value) for index, value in enumerate(args)] + list(kwargs.items())
    while left:
        name, value = left.pop()
        if type(value) is dict:
            held[name] = (value, dict(value))
            left += [(f"{name}[{key!r}]", entry) for key, entry in value.items()]
        elif type(value) in (list, tuple):
            held[name] = (value, list(value))
            left += [(f"{name}[{index}]", entry) for index, entry in enumerate(value)]
    return held


def _still(container: Any, content: Any) -> bool:
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        return all(key in container and container[key] is entry for key, entry in content.items())
    return all(entry is other for entry, other in zip(container, content, strict=True))
