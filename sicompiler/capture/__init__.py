"""Capture: a module and example inputs become a `Program`, a pure graph of static shapes with parameters as inputs."""

from sicompiler.capture.live_tensors import named_tensors, tensors_now
from sicompiler.capture.program import (
    Binding,
    Program,
    Source,
    compile_now,
    fingerprint,
    flatten_inputs,
    module_of,
    same_inputs,
    structure,
    weights_bytes,
)
from sicompiler.capture.trace import capture, check_no_autocast

__all__ = [
    "Binding",
    "Program",
    "Source",
    "capture",
    "check_no_autocast",
    "compile_now",
    "fingerprint",
    "flatten_inputs",
    "module_of",
    "named_tensors",
    "same_inputs",
    "structure",
    "tensors_now",
    "weights_bytes",
]
