"""Tiling: tiles blended where they meet, which is another output than that of the whole; and models that only do that.

Some decoders are written for tiles alone: without, they say that they are not implemented. That is found by trying: the
method is run without tiling, under fake tensors, and what counts is whether its own code says so.
"""

from __future__ import annotations

import traceback

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sicompiler.capture.entry import FORWARD
from sicompiler.capture.live_tensors import named_tensors
from sicompiler.capture.reasons import is_users_file
from sicompiler.errors import BadInput, CaptureError

SWITCH = "use_tiling"
_SIZES = (5, 16, 16)  # frames, height, width of what a method is tried with


def check_tiling(label: str, model: torch.nn.Module, method: str) -> None:
    """Refuse to capture a model that blends tiles.

    Args:
        label: what the model is called.
        model: the live model.
        method: its entry point.

    Raises:
        BadInput: tiling is on, and can be switched off.
        CaptureError: it can't: there is no other way to run this model.
    """
    tiled = next((path for path, child in model.named_modules() if getattr(child, SWITCH, False) is True), None)
    if tiled is None:
        return
    only = runs_only_tiled(model, method)
    if only:
        raise CaptureError(
            f"{label} only runs tiled (without, it says: {only}), and tiles are not planned; leave it uncompiled: as "
            "part of a compiled pipeline it runs untouched, within the budget"
        )
    where = f" of {tiled}" if tiled else ""
    raise BadInput(
        f"tiling is on{where} in {label}: tiles are blended where they meet, which is another output than that of the "
        "whole; call disable_tiling() first, a compiled model fits a budget without it"
    )


def runs_only_tiled(model: torch.nn.Module, method: str) -> str:
    """What a model says when a method is run without tiling; empty where it has nothing against that.

    Args:
        model: the live model; nothing of it is changed, and no memory is taken.
        method: `decode`, `encode` or `forward`.
    """
    alone = object.__new__(type(model))  # shares all with the model, but for the switch and what is patched over it
    alone.__dict__.update({k: v for k, v in model.__dict__.items() if k not in (method, FORWARD, "_hf_hook")})
    alone.__dict__[SWITCH] = False
    weight = next(iter(named_tensors(model).values()), torch.empty(0))
    channels = _channels(model, "latent_channels" if method == "decode" else "in_channels")
    mode = weight.fake_mode if isinstance(weight, FakeTensor) else FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.no_grad():
            getattr(alone, method)(torch.empty(1, channels, *_SIZES, dtype=weight.dtype, device=weight.device))
    except NotImplementedError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return str(error) or "not implemented" if is_users_file(last.filename) else ""
    except Exception:  # another complaint, about the sizes say: it got past where it would have said so
        return ""
    return ""


def _channels(model: torch.nn.Module, name: str) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, name, None) or {"latent_channels": 4}.get(name, 3))
