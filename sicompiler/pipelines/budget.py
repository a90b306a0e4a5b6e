"""The budget of a model whose user names none: what is free on its device now."""

from __future__ import annotations

import logging
from typing import Any

import torch

from sicompiler.cards import card_in
from sicompiler.compiled_module import HOOK
from sicompiler.device import device_kind, device_kinds, free_bytes
from sicompiler.errors import BadInput
from sicompiler.pipelines.components import modules_of
from sicompiler.units import GIB, MIB, format_bytes, parse_bytes

log = logging.getLogger("sicompiler")

WITHOUT_COUNTERS_BYTES = 11 * GIB  # of a device that does not tell what is free for torch, as the CPU
# Left free for what is not in any plan: kernels that CUDA loads at their first call, handles of cuBLAS and cuDNN, and
# other programs that grow (a browser, a desktop).
MARGIN_BYTES = 512 * MIB


def budget_of(model: Any, gb: float | str | None) -> int:
    """Bytes of a budget, as a user says it.

    Args:
        model: a module or a pipeline.
        gb: as of `parse_bytes`; None takes what torch has on the model's device and what is free there, less
            `MARGIN_BYTES`.

    Raises:
        BadInput: it makes no sense, or no more than the margin is free.
    """
    if gb is not None:
        card = card_in(gb)
        if card is not None:
            log.warning("the budget is that of a card: %s", card)
        return parse_bytes(gb)
    device = _device_of(model)
    if not device_kind(device).has_counters:
        return WITHOUT_COUNTERS_BYTES
    free = free_bytes(device)
    if free <= MARGIN_BYTES:
        raise BadInput(
            f"{format_bytes(free)} is free for torch on {device}, and a margin of {format_bytes(MARGIN_BYTES)} is left "
            "for kernels and other programs. Close other programs there, or name a budget: gb=..."
        )
    log.warning(
        "a budget of %s: %s is free on %s for torch, less %s for kernels and other programs",
        *(format_bytes(free - MARGIN_BYTES), format_bytes(free), device, format_bytes(MARGIN_BYTES)),
    )
    return free - MARGIN_BYTES


def _device_of(model: Any) -> torch.device:
    """Where a model runs: where its weights are, or where accelerate moves them for a call; an accelerator first."""
    parts = [model] if isinstance(model, torch.nn.Module) else list(modules_of(model).values())
    found = {tensor.device for part in parts for tensor in (*part.parameters(), *part.buffers())}
    hooks = (getattr(part.__dict__.get(HOOK), "execution_device", None) for part in parts)
    found |= {torch.device(device) for device in hooks if device is not None}
    known = sorted((d for d in found if d.type in device_kinds()), key=lambda d: (d.type == "cpu", str(d)))
    return known[0] if known else torch.device("cpu")
