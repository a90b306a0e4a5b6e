"""What tests of the compiler share: its row for the emulated device, a small model, and one compiled call of it."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

import sicompiler
from sicompiler.device import device_kind, lookup, register_device
from sicompiler.facts.workspace import cuda, table
from sicompiler.facts.workspace.composite import composite
from sicompiler.facts.workspace.families import COMPOSITE
from sicompiler.facts.workspace.layout import Formula, KernelCall, nothing
from sicompiler.plan import Plan
from tests.emulated import accelerator

EMU = torch.device(accelerator.NAME, 0)


class Runtime:
    """What the compiler uses of CUDA's runtime library: memory registered in place."""

    @staticmethod
    def cudaHostRegister(address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        """Pin memory; not zero where the limit is reached."""
        try:
            accelerator.register_host_memory(address, nbytes)
        except RuntimeError:
            return 2  # cudaErrorMemoryAllocation
        return 0

    @staticmethod
    def cudaHostUnregister(address: int) -> int:  # noqa: N802
        """Let go of memory that was pinned."""
        accelerator.unregister_host_memory(address)
        return 0


def _workspace(call: KernelCall) -> int:
    return KERNELS.get(call.target, nothing)(call)


# Kernels of the emulated device are those of the CPU and take their workspace from the host; operators of ours and
# composite ones run several of them, whose results lie on the device.
KERNELS: dict[OpOverload, Formula] = {
    **dict.fromkeys(cuda.ROWS, nothing),
    **dict.fromkeys(COMPOSITE, composite(_workspace)),
    torch.ops.aten.roll.default: cuda.ROWS[torch.ops.aten.roll.default],
    torch.ops.sicompiler.group_apply.default: cuda.few_per_channel,
    torch.ops.sicompiler.group_stats.default: cuda.group_stats,
}


def register(*, keeps_segments: bool = False) -> None:
    """Give the emulated device a row: that of CUDA, without the memory that its libraries keep.

    Args:
        keeps_segments: whether budgets bound what the allocator reserves, by the workspace that kernels have here.
            Segments of 2 and 20 MiB are larger than most models of these tests, so that is for tests of its own.
    """
    torch.get_device_module(accelerator.NAME).cudart = Runtime
    like = device_kind("cuda")
    machine = dataclasses.replace(like.machine, name=accelerator.NAME)
    row = dataclasses.replace(like, name=accelerator.NAME, machine=machine, library_bytes=0)
    columns: dict[str, Mapping[OpOverload, Formula]] = {**table.COLUMNS, "emulated": KERNELS}
    table.COLUMNS, table._COUNTS = columns, {**table._COUNTS, "emulated": _workspace}
    lookup._kinds.pop(accelerator.NAME, None)
    column = "emulated" if keeps_segments else like.workspace
    register_device(dataclasses.replace(row, keeps_segments=keeps_segments, workspace=column))


class Residual(nn.Module):
    """Convolutions with group norms on residual branches, which keep their input alive."""

    def __init__(self, blocks: int = 3, width: int = 64) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.leave = nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        return torch.as_tensor(self.leave(h))


@dataclass(frozen=True)
class Call:
    """One call of a model on the emulated device.

    Attributes:
        model: on the device.
        args: on the device.
        kwargs: on the device.
        expected: what the untouched model gives on the CPU.
        peak_bytes: of the untouched model on the device, what it holds included.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: list[torch.Tensor]
    peak_bytes: int

    def run(self) -> list[torch.Tensor]:
        """Results of the model as it is now, on the CPU."""
        with torch.inference_mode():
            return tensors(self.model(*self.args, **self.kwargs))

    def error(self) -> float:
        """How far results are from those expected."""
        pairs = zip(self.run(), self.expected, strict=True)
        return max(float((got - expected).abs().max()) for got, expected in pairs)


def tensors(results: object) -> list[torch.Tensor]:
    """Every tensor of what a model returned, on the CPU."""
    return [leaf.cpu() for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]


def on_device(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Run a model on the CPU, move it and its call to the device, and measure it there."""
    with torch.inference_mode():
        expected = tensors(model(*args, **kwargs))
    model.to(EMU)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(EMU), (args, kwargs))
    call = Call(model, args, kwargs, expected, 0)
    call.run()
    with peaks() as measured:
        call.run()
    return dataclasses.replace(call, peak_bytes=measured.allocated)


@dataclass
class Peaks:
    """The most that was allocated and reserved in a block, in bytes."""

    allocated: int = 0
    reserved: int = 0


@contextmanager
def peaks() -> Iterator[Peaks]:
    """The most that is allocated and reserved in this block, which begins with nothing cached."""
    gc.collect()
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats()
    measured = Peaks()
    yield measured
    torch.accelerator.synchronize()
    measured.allocated = torch.accelerator.max_memory_allocated()
    measured.reserved = torch.accelerator.max_memory_reserved()


@contextmanager
def compiled(call: Call, budget: int, **options: Any) -> Iterator[Plan]:
    """The model within a budget of bytes, and the plan of this call; untouched again after the block."""
    model = sicompiler.compile_for_budget(call.model, f"{budget}B", **options)
    try:
        call.run()
        yield sicompiler.report(model).plans[-1]
    finally:
        sicompiler.release(call.model)
