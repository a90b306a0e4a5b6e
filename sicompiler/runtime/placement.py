"""Where the weights of a live model lie: on the device, or in its offload memory while a plan streams them.

A weight stays the `Parameter` it is, in its module and under its name; only its memory changes. So what a user loads
into it, or fuses into it, goes where it lies.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection

import torch

from sicompiler.capture import named_tensors
from sicompiler.capture.quantised import stored
from sicompiler.ops import is_offloaded, offloaded_tensor

_lock = threading.RLock()
_streaming: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # models that have offloaded weights


def place(model: torch.nn.Module, offloaded: Collection[str], device: torch.device) -> None:
    """Have some weights offloaded, and all others on a device.

    Args:
        model: whose weights.
        offloaded: names of those that are streamed; of no use for one that has two names.
        device: what computes.

    Raises:
        OffloadError: there is no room to offload to. All weights are on the device then.
    """
    with _lock:
        if not offloaded and model not in _streaming:
            return
        tensors = {name: list(stored(tensor)) for name, tensor in named_tensors(model).items()}
        wanted = {id(plain) for name in offloaded for plain in tensors[name]}
        _streaming.add(model)
        try:
            for tensor in {id(plain): plain for parts in tensors.values() for plain in parts}.values():
                lies, goes = is_offloaded(tensor), id(tensor) in wanted
                if lies != goes or (not goes and tensor.device != device):
                    _move(tensor, device, offloaded=goes)
        except BaseException:
            if offloaded:
                place(model, (), device)
            raise
        if not offloaded:
            _streaming.discard(model)


def restore(model: torch.nn.Module, device: torch.device) -> None:
    """Have all weights on a device."""
    place(model, (), device)


def streams(model: torch.nn.Module) -> bool:
    """Whether a model has offloaded weights."""
    return model in _streaming


def _move(tensor: torch.Tensor, device: torch.device, *, offloaded: bool) -> None:
    size, stride, dtype = tensor.shape, tensor.stride(), tensor.dtype
    with torch.inference_mode(False):  # weights that are made within it could never be trained again
        new = (
            offloaded_tensor(size, stride, dtype, device, lasting=True)
            if offloaded
            else torch.empty_strided(size, stride, dtype=dtype, device=device)
        )
        new.copy_(tensor.detach())
        tensor.data = new
