"""Guards of tensors and arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.identity import token, version

_SMALL = 64  # entries of a tensor whose values are compared too: a trace may have made numbers of them

Layout = tuple[type, torch.Size, torch.dtype, tuple[int, ...] | None, bool]


def _values(tensor: torch.Tensor) -> Hashable:
    """Values of a small tensor of the CPU; `.data` and NumPy write them without moving the version."""
    if isinstance(tensor, FakeTensor) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if tensor.numel() > _SMALL or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return None
    return str(tensor.tolist())


def _version_of(tensor: torch.Tensor, values: bool) -> Hashable:
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode: nobody counts what is written
        known = values and not isinstance(tensor, FakeTensor) and not tensor.is_meta
        return str(tensor.double().sum().item()) if known else None


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The values of a tensor, in order, as bytes; whatever its strides and device."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu")
    return flat.copy_(tensor.detach().reshape(-1)).view(torch.uint8).numpy().tobytes()


def tensor_fact(tensor: torch.Tensor, values: bool = True) -> Hashable:
    """What a tensor is that a trace takes as a constant: which, how often written into, its layout.

    Args:
        tensor: the constant.
        values: look at values of small ones too; not in the middle of a trace, which would take part.
    """
    layout = (tuple(tensor.shape), tensor.dtype, str(tensor.device), str(tensor.layout))
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return ("tensor", token(tensor), _version_of(tensor, values), layout, strides, _values(tensor) if values else None)


class TensorGuard(Guard):
    """A tensor that is no parameter or buffer of the model, which a trace takes as a constant.

    By identity, version counter, shape, strides, dtype and device; small ones on the CPU by value too, for a trace may
    have made Python numbers of them.
    """

    __slots__ = ("fact", "looks_inside")

    def __init__(self, tensor: torch.Tensor, path: str, walk: Visitor) -> None:
        self.looks_inside = walk.looks_inside
        self.fact = tensor_fact(tensor, self.looks_inside)
        walk.note(path, self.fact)
        walk.tensor(path, tensor)
        walk.keep(tensor)

    def holds(self, value: Any) -> bool:
        """Whether it is the same tensor, not written into since."""
        return isinstance(value, torch.Tensor) and tensor_fact(value, self.looks_inside) == self.fact


class ArrayGuard(Guard):
    """A NumPy array: by dtype, shape and content, as nothing counts what is written into it."""

    __slots__ = ("fact",)

    def __init__(self, array: np.ndarray[Any, Any], path: str, walk: Visitor) -> None:
        self.fact = _array_fact(array)
        walk.note(path, self.fact)
        walk.keep(array)

    def holds(self, value: Any) -> bool:
        """Whether it is an array of the same entries."""
        return isinstance(value, np.ndarray) and _array_fact(value) == self.fact


def _array_fact(array: np.ndarray[Any, Any]) -> Hashable:
    content = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
    return ("array", array.shape, str(array.dtype), hashlib.blake2b(content, digest_size=8).hexdigest())


def layout_of(tensor: torch.Tensor | None) -> Layout | None:
    """What a plan depends on of a parameter or buffer; where a call runs its inputs tell, as weights may be offloaded.

    Args:
        tensor: None where a module has a name without a tensor.
    """
    if tensor is None:
        return None
    strides = tensor.stride() if tensor.layout is torch.strided and tensor.dim() > 1 else None
    return (type(tensor), tensor.shape, tensor.dtype, strides, tensor.is_meta)


class RegisteredGuard(Guard):
    """The parameters, or the buffers, of one module: names and layouts, and which of them are one tensor.

    They are looked up by name at every call, so values and identity are free to change, but for tensors that have two
    names: a trace knows them by one.
    """

    __slots__ = ("layouts", "names", "shared", "version")

    def __init__(self, tensors: Mapping[str, torch.Tensor | None], shared: bool) -> None:
        self.version = version(tensors)
        self.names, self.layouts = list(tensors), [layout_of(tensor) for tensor in tensors.values()]
        self.shared = shared

    def holds(self, value: Any) -> bool:
        """Whether names and layouts are as they were. Written to be quick: a big model has thousands of tensors."""
        now = version(value)
        if now != self.version and (self.shared or list(value) != self.names):
            return False
        for tensor, layout in zip(value.values(), self.layouts, strict=True):
            if tensor is None or layout is None:
                if tensor is None and layout is None:
                    continue
                return False
            kind, shape, dtype, strides, is_meta = layout
            if (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or (strides is not None and tensor.stride() != strides)
                or tensor.is_meta is not is_meta
                or type(tensor) is not kind
            ):
                return False
        self.version = now
        return True
