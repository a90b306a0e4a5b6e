"""What a program on disk is kept under, as tests ask for it; imports no more than that takes, for other processes."""

from __future__ import annotations

import torch

from sicompiler.guards import ModuleGuards
from sicompiler.guards.durable import durable_digest
from sicompiler.guards.sources import NotDurable


def key(model: torch.nn.Module) -> str:
    """What a program of the model is kept under; empty where none is."""
    try:
        return durable_digest(ModuleGuards().facts_of(model))
    except NotDurable:
        return ""
