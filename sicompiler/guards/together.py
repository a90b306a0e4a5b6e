"""The modules of a model, all asked at once whether they are as they were.

Most of them have nothing that can change but their attributes, their tensors and their children. Of these the versions
of dicts tell, which are read in a few passes over lists, and of the layouts of all tensors one check of torch's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sicompiler.guards.identity import version
from sicompiler.guards.modules import ModuleGuard, all_hold, inside_holds

_MOVES = 3  # of the attributes of a module, though none that counts changes: then it is asked by itself
_PATIENCE = 16  # how often lists are made anew
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})


class Modules:
    """The guards of the modules of a model: they are asked one by one only where lists don't tell.

    Args:
        guards: of the modules.
    """

    def __init__(self, guards: Sequence[ModuleGuard]) -> None:
        self._guards = guards
        self._moves = [0] * len(guards)
        self._versions = [0] * len(guards)  # of their attributes, when the lists were made
        self._lists: _Lists | None = None
        self._alone: list[ModuleGuard] = []
        self._asked = 0

    def hold(self) -> bool:
        """Whether all of them are as they were."""
        if self._lists is not None and self._lists.hold():
            return all_hold(self._alone)
        if not all_hold(self._guards):
            return False
        self._asked += 1
        if self._asked > _PATIENCE:
            self._lists = None
        elif self._asked > 1:  # who asks once, in the middle of a trace, has no use for lists
            self._list()
        return True

    def _list(self) -> None:
        """Make the lists anew, as they don't hold though all modules do."""
        known, self._versions = self._versions, [guard.attributes.version for guard in self._guards]
        moved = [now != before for now, before in zip(self._versions, known, strict=True)]
        self._moves = [moves + once for moves, once in zip(self._moves, moved, strict=True)]
        rows = list(zip(self._guards, self._moves, strict=True))
        self._alone = [guard for guard, moves in rows if moves > _MOVES]
        self._lists = _Lists([guard for guard, moves in rows if moves <= _MOVES])


class _Lists:
    """Modules as they are now; none of them, and no tensor, is kept alive.

    Args:
        guards: of the modules, all of which hold.
    """

    def __init__(self, guards: Sequence[ModuleGuard]) -> None:
        self._modules = [guard.reference for guard in guards]
        owns = [module.__dict__ for module in self._alive()]
        self._kinds, self._attributes = [guard.kind for guard in guards], list(map(version, owns))
        self._registered = [(place, name) for place, guard in enumerate(guards) for name, _ in guard.registered]
        self._children = [(place, "_modules") for place, guard in enumerate(guards) if guard.children]
        self._held = self._versions_held(owns)
        self._inside = [
            (place, guard) for place, guard in enumerate(guards) if guard.attributes.changing or guard.hooks
        ]
        found = [t for place, name in self._registered for t in owns[place][name].values() if t is not None]
        tensors = list({id(tensor): tensor for tensor in found}.values())
        self._tensors = list(map(weakref.ref, tensors))
        self._laid_out = layouts_of(tensors)

    def _alive(self) -> list[Any]:
        return [reference() for reference in self._modules]

    def _versions_held(self, owns: Sequence[dict[str, Any]]) -> list[int]:
        return [version(owns[place][name]) for place, name in (*self._registered, *self._children)]

    def hold(self) -> bool:
        """Whether all of it is as it was; if not, the guards have to be asked."""
        modules = self._alive()
        if list(map(type, modules)) != self._kinds:
            return False
        owns = [module.__dict__ for module in modules]
        if list(map(version, owns)) != self._attributes or self._versions_held(owns) != self._held:
            return False
        if not self._laid_out(*[reference() for reference in self._tensors]):
            return False
        return all(inside_holds(guard, owns[place]) for place, guard in self._inside)


def layouts_of(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """What tells whether tensors have the layouts they have now: TorchDynamo's own check, where torch has it.

    It is stricter than plans are: devices and whether gradients are recorded count too.

    Args:
        tensors: parameters and buffers, each once.
    """
    if _TensorGuards is None or not all(type(t) in _PLAIN and t.layout is torch.strided for t in tensors):
        return lambda *_: False
    if not tensors:
        return lambda *_: True
    sizes, strides = [list(t.size()) for t in tensors], [list(t.stride()) for t in tensors]
    check: Callable[..., bool] = _TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return check


def _tensor_guards() -> Any:
    try:
        from torch._C._dynamo.guards import TensorGuards
    except ImportError:
        return None
    return TensorGuards


_TensorGuards: Any = _tensor_guards()
