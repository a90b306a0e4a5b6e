"""Measures what the cost model wants to know of a device: `sicompiler calibrate`."""

from sicompiler.calibration.machine import measure_machine

__all__ = ["measure_machine"]
