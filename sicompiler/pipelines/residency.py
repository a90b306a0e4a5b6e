"""Which components stay on the device: idle ones go when the budget asks, and come back when called.

From an accelerator they go to the CPU. From a CPU they go to its offload memory, a mapped file, if that is allowed. In
unified memory they stay. A component that accelerate has hooked is accelerate's to move.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Iterable

import torch

from sicompiler.capture import named_tensors
from sicompiler.compiled_module import HOOK
from sicompiler.device import HostMemory, device_kind
from sicompiler.pipelines.weights import weights_of
from sicompiler.runtime.placement import place
from sicompiler.turns import Turn, turn_of
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")

_away: weakref.WeakKeyDictionary[torch.nn.Module, torch.device] = weakref.WeakKeyDictionary()  # where they came from


class Residency:
    """Moves idle components out of the way and back.

    Args:
        offloaded: whether components of a CPU may go to offload memory.
    """

    def __init__(self, *, offloaded: bool = False) -> None:
        self.offloaded = offloaded

    def is_away(self, part: torch.nn.Module) -> bool:
        """Whether a component was moved away, by whichever pipeline that has it."""
        return part in _away

    def moves_away_from(self, device: torch.device) -> bool:
        """Whether there is anywhere to move an idle component of a device to."""
        return device_kind(device).can_evict(offload=self.offloaded)

    def movable(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component is on a device and may be moved away from it."""
        return self.moves_away_from(device) and HOOK not in part.__dict__ and bool(weights_of(part, device))

    def make_room(
        self, idle: Iterable[tuple[str, torch.nn.Module]], device: torch.device, waiting: Turn | None = None
    ) -> str | None:
        """Move one idle component away. Where another thread runs all there are, for another pipeline, wait for one.

        Args:
            idle: by name, those to give up first at the front.
            device: to make room on.
            waiting: of the component that is about to run; it may be moved away meanwhile. None does not wait.

        Returns:
            The name of the component that went; None where there is nothing left to move.
        """
        parts = list(idle)
        for name, part in parts:
            with turn_of(part).if_idle() as is_idle:
                if is_idle and self._send(name, part, device):
                    return name
        busy = [(name, part) for name, part in parts if self.movable(part, device)]
        if waiting is None:
            return None
        with waiting.waiting_for([turn_of(part) for _, part in busy]) as number:
            if number is None:
                return None
            name, part = busy[number]
            self._send(name, part, device)
            return name

    def _send(self, name: str, part: torch.nn.Module, device: torch.device) -> bool:
        if not self.movable(part, device):
            return False
        log.info("moving %s (%s) away", name, format_bytes(sum(weights_of(part, device).values())))
        _away[part] = device
        self.send(part, device)
        return True

    def missing(self, part: torch.nn.Module, device: torch.device) -> bool:
        """Whether a component that is about to run on a device was moved away from it."""
        return _away.get(part) == device

    def bring(self, part: torch.nn.Module, offloaded: Collection[str] = ()) -> None:
        """Move a component back to where it was.

        Args:
            part: the component.
            offloaded: names of the weights that its plan streams: these go to offload memory.
        """
        home = _away.get(part)
        if home is not None:
            self.fetch(part, home, offloaded)
            del _away[part]  # not before: where a move fails half way, the next call goes on with it

    def send(self, part: torch.nn.Module, device: torch.device) -> None:
        """Move all weights of a component away from a device."""
        if device_kind(device).host_memory is HostMemory.MAPPED:
            place(part, named_tensors(part).keys(), device)
        else:
            part.to("cpu")

    def fetch(self, part: torch.nn.Module, device: torch.device, offloaded: Collection[str]) -> None:
        """Move all weights of a component to a device, but for those that are streamed."""
        if device_kind(device).host_memory is HostMemory.MAPPED or offloaded:
            place(part, offloaded, device)
        else:
            part.to(device)
