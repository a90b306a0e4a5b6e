"""Names of calls: digests of all that is given to them, the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from sicompiler.guards.tensors import bytes_of


def label_of(call: Mapping[str, Any]) -> str:
    """A name for a call that is the same in another process: a digest of its arguments, random states included."""
    return hashlib.sha256(_told(call).encode()).hexdigest()[:16]


def _told(value: Any) -> str:
    if isinstance(value, torch.Generator):
        return f"generator {_digest(value.get_state().numpy().tobytes())}"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)} {_digest(bytes_of(value))}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_told(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_told, value)) + "]"
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    pixels = getattr(value, "tobytes", None)  # pictures and arrays
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"{kind} {getattr(value, 'size', '')} {_digest(pixels())}" if callable(pixels) else kind


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
