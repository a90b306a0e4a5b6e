"""The model zoo: presets, local diffusers folders and functions of the user become a module and one call of it."""

from sicompiler.zoo.build import ModelCall, build_preset
from sicompiler.zoo.geometry import Geometry, Sizes
from sicompiler.zoo.load import resolve
from sicompiler.zoo.presets import known_presets

__all__ = ["Geometry", "ModelCall", "Sizes", "build_preset", "known_presets", "resolve"]
