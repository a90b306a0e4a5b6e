"""Bytes of the weights of a component by storage, added up again only where something about them has changed.

They are asked for at every call of every component. To see that the modules, parameters and buffers are those of the
last time takes a quarter of the time of adding up: by the versions of the dicts that hold them, and by addresses.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch

from sicompiler.adapters.unchanged import Structure
from sicompiler.capture.quantised import storage_bytes, stored, weights_in
from sicompiler.ops import is_far
from sicompiler.runtime.placement import streams

_ADDRESSED = frozenset({torch.Tensor, torch.nn.Parameter})  # what is inside of others may change without a trace


class _Snapshot:
    """What the weights of a model took when they were added up, and what they were; it keeps none of them alive."""

    def __init__(self, model: torch.nn.Module) -> None:
        tensors = list(weights_in(model))
        self._structure = Structure(model)
        self._tensors = [(weakref.ref(tensor), tensor.data_ptr()) for tensor in tensors]
        self.nbytes = {device: storages(tensors, device) for device in {tensor.device for tensor in tensors}}

    def holds(self) -> bool:
        """Whether each module holds what it held, and each tensor shows the memory that it showed."""
        if not self._structure.holds():
            return False
        for tensor, address in self._tensors:
            weight = tensor()
            if weight is None or weight.data_ptr() != address:
                return False
        return True


_snapshots: weakref.WeakKeyDictionary[torch.nn.Module, _Snapshot] = weakref.WeakKeyDictionary()


def weights_of(part: torch.nn.Module, device: torch.device) -> dict[int, int]:
    """Bytes by storage of a module's parameters and buffers on a device; offloaded ones are left out."""
    snapshot = None if streams(part) else _snapshots.get(part)
    if snapshot is None or not snapshot.holds():
        if streams(part) or not all(type(t) in _ADDRESSED and t.layout is torch.strided for t in weights_in(part)):
            tensors = (plain for tensor in weights_in(part) for plain in stored(tensor))
            return storages((t for t in tensors if not is_far(t)), device)
        snapshot = _snapshots[part] = _Snapshot(part)
    return dict(snapshot.nbytes.get(device, {}))


def storages(tensors: Iterable[torch.Tensor], device: torch.device) -> dict[int, int]:
    """Bytes by storage of the tensors on a device."""
    return storage_bytes(t for t in tensors if t.device == device)
