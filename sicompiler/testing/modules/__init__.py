"""Random modules in PyTorch code: blocks by family, and the network they are put together to."""

from __future__ import annotations

from sicompiler.testing.modules.form import Block, BlockCall, Unfit, ValueForm
from sicompiler.testing.modules.network import WIDE, RandomNetwork, draw_network, random_network

__all__ = ["WIDE", "Block", "BlockCall", "RandomNetwork", "Unfit", "ValueForm", "draw_network", "random_network"]
