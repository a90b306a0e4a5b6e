"""Random models and random legal rewrites of them: what the tests draw from, and what you can test your own rules with."""

from __future__ import annotations

from sicompiler.testing.models import Scale, draw_module, random_module
from sicompiler.testing.regions import draw_regions

__all__ = ["Scale", "draw_module", "draw_regions", "random_module"]
