"""The guards of a whole model: its key, found again at little cost while nothing has changed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import torch

from sicompiler.collector import paused_gc
from sicompiler.guards.modules import View
from sicompiler.guards.walk import ModelDescription


def all_of_it(own: Mapping[str, object]) -> Mapping[str, object]:
    """The view of a model on which nothing of ours is."""
    return own


class ModuleGuards:
    """What a plan depends on of a live model, as one number.

    Everything is described once, which takes a tenth of a second for a big model. A call asks the guards; only when one
    of them does not hold, everything is described anew. Nothing of the model is kept alive.

    Args:
        view: what of the attributes of the model itself counts.
        methods: names of the entry points.
        path: what the model is called.
    """

    def __init__(self, view: View = all_of_it, methods: Iterable[str] = ("forward",), path: str = "") -> None:
        self._view, self._methods, self._path = view, tuple(methods), path
        self._known: tuple[ModelDescription, int] | None = None  # one attribute: threads share a model

    def key(self, model: torch.nn.Module) -> int:
        """A hash of all that a plan depends on of the model: code, hooks, state, layouts of its tensors."""
        known = self._known
        if known is None or not known[0].holds(model):
            with paused_gc():
                walk = ModelDescription(model, self._view, self._methods, path=self._path)
                walk.tensors.clear()
                known = self._known = (walk, hash(frozenset(walk.facts.items())))
        return known[1]

    def facts_of(self, model: torch.nn.Module) -> Mapping[str, Hashable]:
        """All that a plan depends on of the model, by path."""
        self.key(model)
        return self.facts

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """What the last key was made of, by path."""
        return {} if self._known is None else self._known[0].facts
