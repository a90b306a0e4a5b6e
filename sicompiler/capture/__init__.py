"""Capture: a module and example inputs become a `Program`, a pure graph of static shapes with parameters as inputs."""

from sicompiler.capture.program import (
    Binding,
    Program,
    Source,
    fingerprint,
    flatten_inputs,
    named_tensors,
    structure,
    weights_bytes,
)
from sicompiler.capture.trace import capture, check_no_autocast, paused_gc

__all__ = [
    "Binding",
    "Program",
    "Source",
    "capture",
    "check_no_autocast",
    "fingerprint",
    "flatten_inputs",
    "named_tensors",
    "paused_gc",
    "structure",
    "weights_bytes",
]
