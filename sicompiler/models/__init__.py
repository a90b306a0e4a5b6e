"""The model zoo: presets, local diffusers folders and functions of the user become a module and one call of it."""

from sicompiler.models.build import ModelCall, build_preset
from sicompiler.models.geometry import Geometry, Sizes
from sicompiler.models.load import resolve
from sicompiler.models.presets import known_presets

__all__ = ["Geometry", "ModelCall", "Sizes", "build_preset", "known_presets", "resolve"]
