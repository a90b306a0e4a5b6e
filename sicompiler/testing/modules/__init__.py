"""Random modules in PyTorch code: blocks by family, and the network they are put together to."""

from __future__ import annotations

from sicompiler.testing.modules.form import Block, Call, Form, Unfit
from sicompiler.testing.modules.network import WIDE, RandomNetwork, draw_network, random_network

__all__ = ["WIDE", "Block", "Call", "Form", "RandomNetwork", "Unfit", "draw_network", "random_network"]
