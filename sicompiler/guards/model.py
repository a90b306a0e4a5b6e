"""The guards of a whole model: its key, found again at little cost while nothing has changed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import torch

from sicompiler.guards.modules import View
from sicompiler.guards.walk import Walk


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
        self._walk: Walk | None = None
        self._key = 0

    def key(self, model: torch.nn.Module) -> int:
        """A hash of all that a plan depends on of the model: code, hooks, state, layouts of its tensors."""
        if self._walk is None or not self._walk.holds(model):
            self._walk = Walk(model, self._view, self._methods, path=self._path)
            self._walk.tensors.clear()
            self._key = hash(frozenset(self._walk.facts.items()))
        return self._key

    @property
    def facts(self) -> Mapping[str, Hashable]:
        """What the last key was made of, by path."""
        return {} if self._walk is None else self._walk.facts
