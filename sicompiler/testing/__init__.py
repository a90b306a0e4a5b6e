"""Random models and random legal rewrites of them: what our tests draw from, and what you can try your own rules on.

`random_module` grows a graph operator by operator; `random_network` puts PyTorch code together, block by block.
"""

from __future__ import annotations

from sicompiler.testing.builder import LARGE, SMALL, Draw, Scale
from sicompiler.testing.models import draw_module, random_module
from sicompiler.testing.modules import WIDE, draw_network, random_network
from sicompiler.testing.regions import draw_regions, predicted_peak
from sicompiler.testing.runs import legal_graph, rewritten, run_program

__all__ = [
    "LARGE",
    "SMALL",
    "WIDE",
    "Draw",
    "Scale",
    "draw_module",
    "draw_network",
    "draw_regions",
    "legal_graph",
    "predicted_peak",
    "random_module",
    "random_network",
    "rewritten",
    "run_program",
]
