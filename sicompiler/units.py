"""Sizes and durations: parsed from what people write, printed as people read."""

from __future__ import annotations

import math
import re

from sicompiler.cards import card_in
from sicompiler.errors import BadInput

KIB, MIB, GIB = 2**10, 2**20, 2**30

_UNITS = {
    "": GIB,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(size: float | int | str) -> int:
    """Read a memory budget.

    Args:
        size: a number of GiB (2**30 bytes), or a string read by its own unit ("11GB" is 11e9 bytes,
            "10.5GiB" is 10.5 * 2**30, "11" is 11 GiB), or a card ("16GB card", "rtx-4090 card"), which gives what it
            really offers (`sicompiler.cards`).

    Returns:
        The size in bytes.

    Raises:
        BadInput: not a number, not finite, zero or negative, or an unknown unit or card.
    """
    card = card_in(size)
    if card is not None:
        return card.budget_bytes
    if isinstance(size, bool) or not isinstance(size, (int, float, str)):
        raise BadInput(f"gb must be a number of GiB or a string such as '11GB', got {size!r}")
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is None:
            raise BadInput(f"can't read {size!r} as a size; write a number of GiB or e.g. '11GB', '10.5GiB'")
        number, unit = float(match[1]), match[2].lower()
        if unit not in _UNITS:
            known = ", ".join(sorted(u for u in _UNITS if u))
            raise BadInput(f"unknown unit {match[2]!r} in {size!r}; known units: {known}")
        value = number * _UNITS[unit]
    else:
        value = float(size) * GIB
    if not math.isfinite(value) or value < 1:
        raise BadInput(f"gb must be positive and finite, got {size!r}")
    return int(value)


def format_bytes(nbytes: int | float) -> str:
    """Print bytes with a binary unit and three significant digits: `3.27 GiB`, `82.6 MiB`, `512 B`."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def budget_hint(nbytes: int) -> str:
    """The `gb=` argument to write for a budget of at least so many bytes: `gb=3.27`, `gb="820KiB"`."""
    if nbytes >= GIB:
        return f"gb={math.ceil(nbytes / GIB * 100) / 100:.2f}"
    unit, name = (MIB, "MiB") if nbytes >= 100 * MIB else (KIB, "KiB")
    return f'gb="{math.ceil(nbytes / unit)}{name}"'


def format_seconds(seconds: float) -> str:
    """Print a duration: `3.2 s`, `41 ms`, `2 min 05 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
