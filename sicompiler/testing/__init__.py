"""Random models and random legal rewrites of them: what our tests draw from, and what you can try your own rules on."""

from __future__ import annotations

from sicompiler.testing.models import LARGE, SMALL, Scale, draw_module, random_module
from sicompiler.testing.regions import draw_regions, predicted_peak
from sicompiler.testing.runs import legal_graph, rewritten, run_program

__all__ = [
    "LARGE",
    "SMALL",
    "Scale",
    "draw_module",
    "draw_regions",
    "legal_graph",
    "predicted_peak",
    "random_module",
    "rewritten",
    "run_program",
]
