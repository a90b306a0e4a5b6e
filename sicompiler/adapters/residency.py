"""Which components stay on the device: idle ones go to the CPU when the budget asks, and come back when called.

Only on an accelerator: on a CPU there is no elsewhere, so all weights count there all the time. A component that
accelerate has hooked is accelerate's to move.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from sicompiler.adapters.held import weights_of
from sicompiler.takeover import HOOK
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")


class Residency:
    """Moves idle components out of the way and back."""

    def __init__(self) -> None:
        self.away: dict[int, torch.device] = {}  # by id of the component: where it came from

    def movable(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component is on a device and may be moved away from it."""
        return device.type != "cpu" and HOOK not in part.__dict__ and bool(weights_of(part, device))

    def make_room(self, idle: Iterable[tuple[str, torch.nn.Module]], device: torch.device) -> str | None:
        """Move one idle component to the CPU.

        Args:
            idle: by name, those to give up first at the front.
            device: to make room on.

        Returns:
            The name of the component that went; None where there is nothing left to move.
        """
        for name, part in idle:
            if self.movable(part, device):
                log.info("moving %s (%s) to the CPU", name, format_bytes(sum(weights_of(part, device).values())))
                self.away[id(part)] = device
                self.move(part, torch.device("cpu"))
                return name
        return None

    def missing(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component that is about to run on a device was moved away from it."""
        return self.away.get(id(part)) == device

    def bring(self, part: torch.nn.Module) -> None:
        """Move a component back to where it was."""
        home = self.away.get(id(part))
        if home is not None:
            self.move(part, home)
            del self.away[id(part)]  # not before: where a move fails half way, the next call goes on with it

    def move(self, part: torch.nn.Module, device: torch.device) -> None:
        """Move all weights of a component."""
        part.to(device)
