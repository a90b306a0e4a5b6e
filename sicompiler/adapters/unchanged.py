"""Whether the modules of a model are those of the last look and hold what they held, told by versions of dicts."""

from __future__ import annotations

import weakref

import torch

from sicompiler.capture.quantised import modules_in
from sicompiler.guards.identity import version


class Structure:
    """The modules of a model, their children, parameters and buffers as they were; it keeps none of them alive.

    Args:
        model: the model.
        attributes: whether the plain attributes of every module count too.
    """

    def __init__(self, model: torch.nn.Module, *, attributes: bool = False) -> None:
        self._attributes = attributes
        # into a module of torch.jit nothing can be put
        parts = [module for module in modules_in(model) if not isinstance(module, torch.jit.ScriptModule)]
        self._modules = [(weakref.ref(module), self._versions(module)) for module in parts]

    def holds(self) -> bool:
        """Whether each module holds what it held."""
        for reference, versions in self._modules:
            module = reference()
            if module is None or self._versions(module) != versions:
                return False
        return True

    def _versions(self, module: torch.nn.Module) -> tuple[int, ...]:
        registered = version(module._modules), version(module._parameters), version(module._buffers)
        return (*registered, version(module.__dict__)) if self._attributes else registered
