"""The devices of this machine: what there is, what is free on it, its streams and its random generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sicompiler.device.lookup import device_kind, device_kinds
from sicompiler.device.table import Device
from sicompiler.errors import BadInput

if TYPE_CHECKING:
    import torch


def accelerator() -> torch.device | None:
    """The accelerator of this machine, its current device; None where there is none, or none that is known."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type not in device_kinds():
        return None
    return torch.device(found.type, torch.accelerator.current_device_index())


def default_device() -> torch.device:
    """Where a model runs if nobody says: the accelerator of this machine, else the CPU."""
    import torch

    return accelerator() or torch.device("cpu")


def check_available(name: str, purpose: str) -> None:
    """Refuse a kind of device that this machine does not have.

    Args:
        name: of the kind.
        purpose: what would run there, as a sentence's subject and verb: "verify runs the model".

    Raises:
        BadInput: it is not known, or not here.
    """
    here, kind = accelerator(), device_kind(name)
    if kind.name != Device.CPU and (here is None or here.type != kind.torch_type):
        raise BadInput(f"there is no {name} device here; {purpose}, so take --device {default_device().type}")


def descriptions() -> list[str]:
    """What each accelerator of this machine is: the names of its model and its generation, as far as torch knows."""
    import torch

    device = accelerator()
    if device is None:
        return []
    module = torch.get_device_module(device.type)
    asks = [getattr(module, name) for name in ("get_device_name", "get_device_capability") if hasattr(module, name)]
    return [" ".join((device.type, *(str(ask(i)) for ask in asks))) for i in range(torch.accelerator.device_count())]


def random_rewinder() -> Callable[[], None]:
    """A function that puts the random generators of all accelerators back into the state they are in now."""
    import torch

    device = accelerator()
    if device is None:
        return lambda: None
    module = torch.get_device_module(device.type)
    if not hasattr(module, "get_rng_state_all"):  # mps: one device, one state
        state = module.get_rng_state()
        return lambda: module.set_rng_state(state)
    states = module.get_rng_state_all()
    return lambda: module.set_rng_state_all(states)


def synchronize(device: torch.device) -> None:
    """Return once a device has done what it was asked for."""
    import torch

    if device_kind(device).has_streams:
        torch.accelerator.synchronize(device)


def stream_in_use() -> torch.Stream | None:
    """The stream that computes now; None where no accelerator was used so far."""
    import torch

    device = accelerator()
    if device is None or not device_kind(device).has_streams:
        return None
    return torch.accelerator.current_stream() if torch.get_device_module(device.type).is_initialized() else None


def free_bytes(device: torch.device) -> int:
    """What torch may take on a device with counters: what is free there, and what its allocator has already."""
    import torch

    return torch.accelerator.get_memory_info(device)[0] + torch.accelerator.memory_reserved(device)


def planned_kind(device_type: str) -> str:
    """The row by which a model on a device of this machine is planned: an older card has one of its own.

    Args:
        device_type: as `torch.device(...).type` gives it.
    """
    import torch

    if device_type != Device.CUDA or not torch.cuda.is_available():
        return device_type
    return device_type if torch.cuda.get_device_capability() >= (8, 0) else Device.CUDA_BEFORE_AMPERE.value


def register_host(address: int, nbytes: int) -> bool:
    """Let the accelerator of this machine copy from and to memory of the host where it lies, at its full speed.

    Args:
        address: of the memory.
        nbytes: of it.

    Returns:
        Whether that is possible; else the allocator of pinned memory has to be asked for some.
    """
    import torch

    device = accelerator()
    if device is None or not device_kind(device).registers_host:
        return False
    portable = 1  # cudaHostRegisterPortable: pinned for every device
    runtime = torch.get_device_module(device.type).cudart()
    return int(runtime.cudaHostRegister(address, nbytes, portable)) == 0


def unregister_host(address: int) -> None:
    """Undo `register_host`, once no copy from or to that memory is on its way."""
    import torch

    device = accelerator()
    assert device is not None
    torch.accelerator.synchronize()
    torch.get_device_module(device.type).cudart().cudaHostUnregister(address)
