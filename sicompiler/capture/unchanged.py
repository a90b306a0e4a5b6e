"""The modules of a live model as they were at the last look, and what they hold, while nobody has put anything there.

Every call of a model asks for its weights, some of them several times. To see that modules, parameters and buffers are
those of the last look takes a tenth of the time of walking through them: the versions of the dicts that hold them are
read in a few passes over lists.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from sicompiler.capture.quantised import modules_in
from sicompiler.guards.identity import version

_HOLDERS = ("_modules", "_parameters", "_buffers")
_ATTRIBUTES: Callable[[Any], dict[str, Any]] = operator.attrgetter("__dict__")
_GONE = type(None)
_HELD: Callable[[dict[str, Any]], tuple[dict[str, Any], ...]] = operator.itemgetter(*_HOLDERS)


class Structure:
    """The modules of a model, their children, parameters and buffers as they were; it keeps none of them alive.

    Args:
        model: the model.
        attributes: whether the plain attributes of every module count too.

    Attributes:
        complete: whether it has all modules; into those of torch.jit nothing can be put, and they are left out.
    """

    def __init__(self, model: torch.nn.Module, *, attributes: bool = False) -> None:
        found = modules_in(model)
        parts = [module for module in found if not isinstance(module, torch.jit.ScriptModule)]
        self.complete = len(parts) == len(found)
        self._modules, self._strict = list(map(weakref.ref, parts)), attributes
        owns = list(map(_ATTRIBUTES, parts))
        self._attributes, self._versions = list(map(version, owns)), _versions_held(owns)
        rows = [(place, name) for place, own in enumerate(owns) for name in _HOLDERS]
        # whoever keeps an empty dict keeps nothing alive
        self._empty = [owns[place][name] for place, name in rows if not owns[place][name]]
        self._rows = [(place, name) for place, name in rows if owns[place][name]]
        self._held = [version(owns[place][name]) for place, name in self._rows]

    def holds(self) -> bool:
        """Whether each module holds what it held."""
        modules = [reference() for reference in self._modules]
        if _GONE in map(type, modules):
            return False
        owns = list(map(_ATTRIBUTES, modules))
        attributes = list(map(version, owns))
        if attributes == self._attributes:  # then the dicts that hold things are the same ones
            return not any(self._empty) and [version(owns[place][name]) for place, name in self._rows] == self._held
        if self._strict or _versions_held(owns) != self._versions:
            return False
        self._attributes = attributes
        return True


def _versions_held(owns: Iterable[dict[str, Any]]) -> list[int]:
    return list(map(version, itertools.chain.from_iterable(map(_HELD, owns))))
