"""The model zoo: full-size presets, local diffusers folders and functions of the user, as a module and one call of it."""

from sicompiler.models.build import ModelCall, build_preset
from sicompiler.models.geometry import Sizes
from sicompiler.models.presets import known_presets

__all__ = ["ModelCall", "Sizes", "build_preset", "known_presets"]
