"""The settings of guidance that a pipeline shows while it runs: what was measured with some holds for no others."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

SHOWN = re.compile(r"_\w*(guidance|cfg|scale)\w*")  # pipelines of diffusers keep them there, and callbacks set them
MOST = 64  # values: a scale a frame
_read: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by tensor: at which version, and what was read from it


def guidance_of(pipe: Any) -> str:
    """Scales of guidance and their like, as one line; empty for a pipeline that shows none.

    Args:
        pipe: a diffusers pipeline whose call has begun.
    """
    rows = [(name[1:], _told(value)) for name, value in sorted(vars(pipe).items()) if SHOWN.fullmatch(name)]
    return ", ".join(f"{name} {told}" for name, told in rows if told)


def drift(before: str, now: str) -> str:
    """What of the settings has changed; empty where nothing has."""
    if before == now:
        return ""
    return f"{now or 'guidance is gone'} where it was {before or 'without'}"


def _told(value: Any) -> str:
    if isinstance(value, (bool, int, float)):
        return f"{float(value):g}"
    if isinstance(value, torch.Tensor) and 0 < value.numel() <= MOST:
        version = 0 if value.is_inference() else value._version  # the former can't be changed in place
        known: tuple[int, str] | None = _read.get(value)
        if known is None or known[0] != version:
            low, high = float(value.min()), float(value.max())
            known = _read[value] = version, f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return known[1]
    return ""
