"""The host and the device are apart: neither reads the other's memory without a copy."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils import backend_registration

from tests.emulated import build
from tests.source_tree import ROOT


def test_it_is_torchs_accelerator() -> None:
    assert str(torch.accelerator.current_accelerator()) == "emu"
    assert torch.accelerator.is_available()
    assert torch.accelerator.device_count() == 1
    assert torch.ones(3, device="emu").device == torch.device("emu", 0)


def test_operands_on_both_are_refused() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="emu") + torch.ones(3)
    assert (torch.ones(3, device="emu") + torch.tensor(2.0)).sum().item() == 9  # a number may come from the host


def test_a_tensor_of_the_device_is_no_array() -> None:
    with pytest.raises(TypeError, match="emu"):
        torch.ones(3, device="emu").numpy()


READS = {
    "the host": "ctypes.string_at(x.data_ptr(), 4)",
    "the host, once it was released": (
        "address = x.data_ptr(); del x; torch.accelerator.empty_cache(); ctypes.string_at(address, 4)"
    ),
}


@pytest.mark.parametrize("reader", READS)
def test_the_processor_stops_a_host_that_reads_memory_of_the_device(reader: str) -> None:
    program = f"""
        import ctypes, torch
        from tests.emulated import accelerator, build
        accelerator.start(build.extension())
        x = torch.ones(4, device="emu") + 1
        assert x.sum().item() == 8
        print("computed", flush=True)
        {READS[reader]}
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout == "computed\n", result.stderr
    assert result.returncode == -signal.SIGSEGV


def test_the_device_is_started_once() -> None:
    with pytest.raises(RuntimeError):
        backend_registration.rename_privateuse1_backend("other")
    assert build.extension().exists()
