"""Rows of the table of devices by name, and rows of other backends. Reading it does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sicompiler.device.table import ROWS, DeviceKind
from sicompiler.errors import BadInput

if TYPE_CHECKING:
    import torch

_kinds: dict[str, DeviceKind] = {kind.name: kind for kind in ROWS}


def device_kinds() -> Mapping[str, DeviceKind]:
    """Every kind of device that is known, by name."""
    return dict(_kinds)


def device_kind(device: torch.device | str) -> DeviceKind:
    """The row of a device, or of a kind of device by its name.

    Raises:
        BadInput: it is not known; lists those that are.
    """
    name = str(device).partition(":")[0]
    if name not in _kinds:
        raise BadInput(
            f"sicompiler does not know devices of kind {name!r}; it knows {', '.join(_kinds)}. Another backend needs "
            "a row: sicompiler.device.register_device"
        )
    return _kinds[name]


def granule_bytes(device_type: str) -> int:
    """What the allocator of a device rounds the size of every block up to; 1 where there is no row for it, as meta."""
    kind = _kinds.get(device_type)
    return 1 if kind is None else kind.granule_bytes


def has_float64(device_type: str) -> bool:
    """Whether a device has tensors of float64; one without a row, as meta, does."""
    kind = _kinds.get(device_type)
    return kind is None or kind.has_float64


def rounded(nbytes: int, granule: int) -> int:
    """Round bytes up as an allocator does."""
    return -(-nbytes // granule) * granule


def register_device(kind: DeviceKind) -> None:
    """Add the row of a backend that torch does not come with.

    Args:
        kind: its row; `name` is that of `torch.utils.rename_privateuse1_backend`.

    Raises:
        BadInput: there is another row by its name.
    """
    if _kinds.setdefault(kind.name, kind) != kind:
        raise BadInput(f"there is another row for devices of kind {kind.name!r}")
