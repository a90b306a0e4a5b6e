"""Step Rehash: reuse a feature between denoising evaluations. Opt-in and approximate; see docs/rehash.md."""

from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.request import Rehash

__all__ = ["Rehash", "RehashPlan"]
