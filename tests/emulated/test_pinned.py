"""Pinned host memory: what it takes, what is kept, and where it ends."""

from __future__ import annotations

import pytest
import torch

from tests.emulated import accelerator
from tests.emulated.accelerator import pinned_memory

KIB = 1 << 10


def _pinned(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (3, 4), (4096, 4096), (4097, 8192), (600 * KIB, 1024 * KIB)])
def test_sizes_are_rounded_to_powers_of_two(asked: int, taken: int) -> None:
    before = pinned_memory()
    held = _pinned(asked)
    after = pinned_memory()
    assert after.in_use - before.in_use == after.reserved - before.reserved == taken
    assert held.is_pinned()
    assert not torch.empty(3).is_pinned()


def test_all_ways_to_pin() -> None:
    assert torch.zeros(3).pin_memory().is_pinned()
    assert torch.empty_strided((4, 4), (1, 4), device="cpu", pin_memory=True).is_pinned()
    assert torch.ones(3, device="emu").to("cpu", non_blocking=True).is_pinned()
    with pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
        torch.empty(3, device="emu", pin_memory=True)


def test_freed_blocks_serve_requests_of_their_size_until_the_cache_is_emptied() -> None:
    first = _pinned(100 * KIB)
    address = first.data_ptr()
    del first
    assert (pinned_memory().in_use, pinned_memory().reserved) == (0, 128 * KIB)
    second = _pinned(128 * KIB)
    assert second.data_ptr() == address
    smaller = _pinned(60 * KIB)
    assert pinned_memory().reserved == (128 + 64) * KIB
    del second, smaller
    accelerator.empty_host_cache()
    assert pinned_memory().reserved == 0


def test_the_limit_counts_what_is_cached() -> None:
    accelerator.configure(pin_limit=1024 * KIB)
    held = [_pinned(512 * KIB), _pinned(300 * KIB)]
    with pytest.raises(RuntimeError, match=r"can't pin 1 bytes .*1048576 of at most 1048576 are pinned"):
        _pinned(1)
    held.clear()
    with pytest.raises(RuntimeError, match="can't pin 1048576 bytes"):
        _pinned(1024 * KIB)
    accelerator.empty_host_cache()
    assert _pinned(1024 * KIB).is_pinned()


def test_a_freed_block_is_not_used_again_while_a_copy_uses_it() -> None:
    accelerator.configure(order="side-last")
    host = torch.ones(KIB).pin_memory()
    address = host.data_ptr()
    device = host.to("emu", non_blocking=True)
    del host
    assert torch.empty(KIB, pin_memory=True).data_ptr() != address
    assert device.sum().item() == KIB
    assert torch.empty(KIB, pin_memory=True).data_ptr() == address


def test_memory_of_ones_own_is_registered_in_place() -> None:
    accelerator.configure(pin_limit=64 * KIB, order="side-last")
    host = torch.arange(8 * KIB, dtype=torch.float32)
    before = pinned_memory()
    accelerator.register_host_memory(host.data_ptr(), host.nbytes)
    assert host.is_pinned()
    assert host[5:].is_pinned()
    assert 0 <= pinned_memory().reserved - before.reserved - host.nbytes <= 2 * 4096  # whole pages, nothing rounded
    assert pinned_memory().in_use == before.in_use
    device = host.to("emu", non_blocking=True)
    with pytest.raises(RuntimeError, match="unregister on the host writes what copy to device on stream 0 reads"):
        accelerator.unregister_host_memory(host.data_ptr())
    torch.accelerator.synchronize()
    accelerator.unregister_host_memory(host.data_ptr())
    assert not host.is_pinned()
    assert pinned_memory().reserved == before.reserved
    assert torch.equal(device.cpu(), host)


def test_registering_is_limited_and_exact() -> None:
    accelerator.configure(pin_limit=32 * KIB)
    host = torch.empty(64 * KIB, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="can't pin"):
        accelerator.register_host_memory(host.data_ptr(), host.nbytes)
    accelerator.register_host_memory(host.data_ptr(), 16 * KIB)
    with pytest.raises(RuntimeError, match="pinned already"):
        accelerator.register_host_memory(host.data_ptr(), 16 * KIB)
    accelerator.unregister_host_memory(host.data_ptr())
    with pytest.raises(RuntimeError, match="was not registered"):
        accelerator.unregister_host_memory(host.data_ptr())
