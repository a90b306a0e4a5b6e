"""Offloaded tensors: pinned host memory for a device with memory of its own, a memory-mapped file for the CPU."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence

import torch

from sicompiler.device import HostMemory, accelerator, device_kind, register_host, unregister_host
from sicompiler.errors import OffloadError

FOLDER_VARIABLE = "SICOMPILER_OFFLOAD_DIR"  # names the folder of mapped files; the system's temporary one otherwise

_folders: dict[str, str] = {}  # absolute, by what the environment says
_mapped: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()  # by address, while in use


def offloaded_tensor(
    size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device, *, lasting: bool = False
) -> torch.Tensor:
    """An uninitialised tensor in the offload memory of a device.

    For the CPU it lies in a file of its own without a name, which the system removes with the tensor. All of its disk
    space is taken here, so that a full disk is an error now and not a crash later.

    Args:
        size: shape.
        stride: in elements; the tensor must not overlap itself.
        dtype: of the elements.
        device: whose offload memory.
        lasting: it stays for long, as weights do: pinned memory then takes exactly what it holds, where the platform
            can register it. Else it comes from torch's allocator of pinned memory, which is quick and keeps it for
            the next tensor, but rounds up to a power of two (`pinned_bytes`).

    Raises:
        OffloadError: the folder is missing, the disk is full, or the host has no memory left to pin.
    """
    if device_kind(device).host_memory is HostMemory.PINNED:
        return _pinned(size, stride, dtype, lasting=lasting)
    extent = 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 in size:
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu")
    flat = torch.frombuffer(_file(extent * dtype.itemsize), dtype=dtype)
    return flat.as_strided(size, stride)


class _Registered(mmap.mmap):
    """Memory of the host that a device copies from and to where it lies, for as long as anything of it is used."""

    address = 0

    def __del__(self) -> None:
        if self.address:
            unregister_host(self.address)


def _pinned(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, *, lasting: bool) -> torch.Tensor:
    extent = 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if lasting and 0 not in size:
        block = _Registered(-1, extent * dtype.itemsize)
        flat = torch.frombuffer(block, dtype=dtype)
        if register_host(flat.data_ptr(), extent * dtype.itemsize):
            block.address = flat.data_ptr()
            return flat.as_strided(size, stride)
    try:
        return torch.empty_strided(size, stride, dtype=dtype, device="cpu", pin_memory=True)
    except RuntimeError as error:
        raise OffloadError(f"can't pin host memory for a tensor of shape {tuple(size)}: {error}") from error


def pinned_bytes(nbytes: int) -> int:
    """What torch's allocator of pinned memory takes for a block: the next power of two (CachingHostAllocatorImpl)."""
    return 1 << max(nbytes - 1, 0).bit_length() if nbytes else 0


def offload_folder(*, fix: bool = False) -> str:
    """The folder of mapped files, absolute: what SICOMPILER_OFFLOAD_DIR names, `~` expanded, else the temporary one.

    Args:
        fix: from now on, a relative folder is seen from the current one, wherever the process goes.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return tempfile.gettempdir()
    if fix or named not in _folders:
        _folders[named] = os.path.abspath(os.path.expanduser(named))
    return _folders[named]


def _file(nbytes: int) -> mmap.mmap:
    folder = offload_folder()
    try:
        with tempfile.TemporaryFile(prefix="sicompiler-", dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
            found = mmap.mmap(file.fileno(), nbytes)
    except OSError as error:
        raise OffloadError(
            f"can't map a file of {nbytes / 2**20:.0f} MiB in {folder}: {error.strerror}. Set {FOLDER_VARIABLE} to a "
            "folder with room, raise the budget, or compile with offload='none'"
        ) from error
    _mapped[torch.frombuffer(found, dtype=torch.uint8).data_ptr()] = found
    return found


def is_offloaded(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in the offload memory of the device it is used on."""
    if tensor.device.type != "cpu" or isinstance(tensor, torch._subclasses.FakeTensor):
        return False
    return tensor.untyped_storage().data_ptr() in _mapped or bool(accelerator() is not None and tensor.is_pinned())
