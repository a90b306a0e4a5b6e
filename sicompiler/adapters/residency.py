"""Which components stay on the device: idle ones go when the budget asks, and come back when called.

From an accelerator they go to the CPU. From a CPU they go to its far memory, a mapped file, if that is allowed. A
component that accelerate has hooked is accelerate's to move.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Iterable

import torch

from sicompiler.adapters.held import weights_of
from sicompiler.capture import named_tensors
from sicompiler.runtime.placement import place
from sicompiler.takeover import HOOK
from sicompiler.turns import turn_of
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")

_away: weakref.WeakKeyDictionary[torch.nn.Module, torch.device] = weakref.WeakKeyDictionary()  # where they came from


class Residency:
    """Moves idle components out of the way and back.

    Args:
        far: whether components of a CPU may go to far memory.
    """

    def __init__(self, *, far: bool = False) -> None:
        self.far = far

    def is_away(self, part: torch.nn.Module) -> bool:
        """Whether a component was moved away, by whichever pipeline that has it."""
        return part in _away

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
            with turn_of(part).if_idle() as is_idle:  # one that another thread runs, for another pipeline, is not
                if is_idle and self.movable(part, device):
                    log.info("moving %s (%s) away", name, format_bytes(sum(weights_of(part, device).values())))
                    _away[part] = device
                    self.send(part, device)
                    return name
        return None

    def missing(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component that is about to run on a device was moved away from it."""
        return _away.get(part) == device

    def bring(self, part: torch.nn.Module, far: Collection[str] = ()) -> None:
        """Move a component back to where it was.

        Args:
            part: the component.
            far: names of the weights that its plan streams: these go to far memory.
        """
        home = _away.get(part)
        if home is not None:
            self.fetch(part, home, far)
            del _away[part]  # not before: where a move fails half way, the next call goes on with it

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
