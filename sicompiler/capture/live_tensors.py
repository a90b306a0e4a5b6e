"""Parameters and buffers of a live model by name, walked through again only where modules hold others than they did."""

from __future__ import annotations

import weakref

import torch

from sicompiler.capture.unchanged import Structure


def named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a live model by name, shared ones under every name they have.

    As `named_parameters` and `named_buffers` give them, at a fifth of their time.
    """
    parameters: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}

    def collect(module: torch.nn.Module, prefix: str) -> None:
        for found, own in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in own.items():
                if tensor is not None:
                    found[prefix + name] = tensor
        for name, child in module._modules.items():
            if child is not None:
                collect(child, f"{prefix}{name}.")

    collect(model, "")
    return parameters | buffers


class _Known:
    """The names of a model's tensors, and the tensors, as long as its structure holds; it keeps none of them alive."""

    def __init__(self, model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        self.structure = Structure(model)
        self._names, self._tensors = list(tensors), list(map(weakref.ref, tensors.values()))

    def tensors(self) -> dict[str, torch.Tensor] | None:
        """They, by name; None where a module holds another one by now."""
        if not self.structure.holds():
            return None
        tensors = [reference() for reference in self._tensors]
        return dict(zip(self._names, tensors, strict=True))  # type: ignore[arg-type]  # a dict holds each


_known: weakref.WeakKeyDictionary[torch.nn.Module, _Known] = weakref.WeakKeyDictionary()


def tensors_now(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What `named_tensors` gives, of a model that is asked at every call."""
    known = _known.get(model)
    tensors = None if known is None else known.tensors()
    if tensors is None:
        tensors = named_tensors(model)
        known = _Known(model, tensors)
        if known.structure.complete:
            _known[model] = known
    return tensors
