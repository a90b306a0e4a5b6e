"""One device measured: the steps, in order, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from sicompiler.calibration import copies, kernels
from sicompiler.calibration.loops import doubt_of
from sicompiler.device import Kernel, Machine, device_kind

Progress = Callable[[str, int, int], None]
STEPS = ("launches", "elementwise", "bandwidth", *(f"kernels of {width} bytes" for width in kernels.WIDTHS), "copies")
HOST_BYTES, DEVICE_BYTES = 2**27, 2**30  # largest working sets: beyond the caches of a CPU, of an accelerator


def measure_machine(device: torch.device, progress: Progress) -> Machine:
    """Measure a device; takes under a minute, and 2 GiB of an accelerator's memory (0.3 GiB of a CPU's).

    Args:
        device: an accelerator, or the CPU with as many threads as torch has now.
        progress: told about each step.

    Raises:
        BadInput: there is no row for it.
        OffloadError: there is no room to offload to.
    """
    row = device_kind(device)
    done = iter(range(len(STEPS) + 1))

    def step(name: str) -> None:
        progress(name, next(done), len(STEPS) + 1)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        step("launches")
        launch = kernels.launch_seconds(device)
        step("elementwise")
        vector = kernels.elementwise(device, launch)
        step("bandwidth")
        most = DEVICE_BYTES if row.has_counters else HOST_BYTES
        memory, cache, cache_bytes = kernels.bandwidths(device, launch, most)
        machine = replace(
            row.machine,
            launch_seconds=launch,
            vector_flops=vector,
            memory_bandwidth=memory,
            cache_bandwidth=cache,
            cache_bytes=cache_bytes,
        )
        for width, dtype in kernels.WIDTHS.items():
            if width == 8 and not row.has_float64:
                continue
            step(f"kernels of {width} bytes")
            machine = _with_kernels(machine, device, width, dtype)
        step("copies")
        if row.can_offload:
            machine = replace(machine, offload_bandwidth=copies.copy_bandwidth(device))
        if row.has_streams:
            machine = replace(machine, offload_overlaps=copies.computes_beside(device))
        step("loops")
        return replace(machine, doubt=doubt_of(machine, device))


def _with_kernels(machine: Machine, device: torch.device, width: int, dtype: torch.dtype) -> Machine:
    """Rates of matrix kernels of one width of elements; thin products and weights as float32 has them."""
    by_rows, by_columns = kernels.products(device, dtype)
    machine = replace(
        machine,
        flops={**machine.flops, width: by_rows.best},
        conv_flops={**machine.conv_flops, width: kernels.convolutions(device, dtype)},
        temporal_flops={**machine.temporal_flops, width: kernels.temporal_convolutions(device, dtype)},
        attention_flops={**machine.attention_flops, width: kernels.attention(device, dtype)},
    )
    if width != 4:
        return machine
    convolution = machine.rate(Kernel.CONVOLUTION, width)
    return replace(
        machine,
        rows_at_half_speed=by_rows.half,
        columns_at_half_speed=by_columns.half,
        kernel_passes=kernels.weight_passes(device, dtype, convolution, machine.memory_bandwidth),
    )
