"""Which components stay on the device: idle ones go when the budget asks, and come back when called.

From an accelerator they go to the CPU. From a CPU they go to its far memory, a mapped file, if that is allowed. A
component that accelerate has hooked is accelerate's to move.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

import torch

from sicompiler.adapters.held import weights_of
from sicompiler.capture import named_tensors
from sicompiler.runtime.placement import place
from sicompiler.takeover import HOOK
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")


class Residency:
    """Moves idle components out of the way and back.

    Args:
        far: whether components of a CPU may go to far memory.
    """

    def __init__(self, *, far: bool = False) -> None:
        self.far = far
        self.away: dict[int, torch.device] = {}  # by id of the component: where it came from

    def movable(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component is on a device and may be moved away from it."""
        return (self.far or device.type != "cpu") and HOOK not in part.__dict__ and bool(weights_of(part, device))

    def make_room(self, idle: Iterable[tuple[str, torch.nn.Module]], device: torch.device) -> str | None:
        """Move one idle component away.

        Args:
            idle: by name, those to give up first at the front.
            device: to make room on.

        Returns:
            The name of the component that went; None where there is nothing left to move.
        """
        for name, part in idle:
            if self.movable(part, device):
                log.info("moving %s (%s) away", name, format_bytes(sum(weights_of(part, device).values())))
                self.away[id(part)] = device
                self.send(part, device)
                return name
        return None

    def missing(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component that is about to run on a device was moved away from it."""
        return self.away.get(id(part)) == device

    def bring(self, part: torch.nn.Module, far: Collection[str] = ()) -> None:
        """Move a component back to where it was.

        Args:
            part: the component.
            far: names of the weights that its plan streams: these go to far memory.
        """
        home = self.away.get(id(part))
        if home is not None:
            self.fetch(part, home, far)
            del self.away[id(part)]  # not before: where a move fails half way, the next call goes on with it

    def send(self, part: torch.nn.Module, device: torch.device) -> None:
        """Move all weights of a component away from a device."""
        if device.type == "cpu":
            place(part, named_tensors(part).keys(), device)
        else:
            part.to("cpu")

    def fetch(self, part: torch.nn.Module, device: torch.device, far: Collection[str]) -> None:
        """Move all weights of a component to a device, but for those that are streamed."""
        if device.type == "cpu" or far:
            place(part, far, device)
        else:
            part.to(device)
