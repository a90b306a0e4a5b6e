"""The rows of the table of devices, and the words they are written in. Reading it does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

MIB = 2**20


# A loop counts so many times what it is thought to take: full-width models ran their loops in 0.6 to 1.4 times the
# unsliced time, and a loop that no budget asks for must not make anything slower.
DOUBT = 1.4


class Kernel(StrEnum):
    """Kinds of matrix kernels, each with a speed of its own."""

    PRODUCT = "product"
    CONVOLUTION = "convolution"
    TEMPORAL = "temporal convolution"  # over frames alone: a kernel of (n, 1, 1)
    ATTENTION = "attention"


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of a device.

    Attributes:
        name: for the report.
        flops: floating point operations per second of matrix products, by bytes per element.
        vector_flops: the same of elementwise kernels.
        memory_bandwidth: bytes per second to and from main (device) memory. On the CPU big tensors are fresh pages at
            every allocation, so this is what touching new memory allows, well below the bus.
        cache_bandwidth: bytes per second while the working set stays in the last-level cache.
        cache_bytes: what of that cache one working set may fill.
        launch_seconds: fixed cost of one operator call.
        rows_at_half_speed: rows of a matrix product at which it reaches half its full rate.
        columns_at_half_speed: the same of its columns: output channels or features.
        line_bytes: what memory moves at least: shorter runs of a slice cost as much.
        kernel_passes: how often a convolution moves its weights (oneDNN lays them out anew at every call).
        offload_bandwidth: bytes per second to and from offload memory: a mapped file, or pinned memory beyond PCIe.
        offload_overlaps: whether the device computes while that goes on.
        conv_flops: as `flops`, of convolutions; of a width that is missing, as of products.
        temporal_flops: as `flops`, of convolutions over frames alone; of a width that is missing, as of others.
        attention_flops: as `flops`, of attention; of a width that is missing, as of products.
        doubt: how many times what it is thought to take a loop counts.
        source: where the figures come from, for the report.
    """

    name: str
    flops: Mapping[int, float]
    vector_flops: float
    memory_bandwidth: float
    cache_bandwidth: float
    cache_bytes: float
    launch_seconds: float
    rows_at_half_speed: float
    columns_at_half_speed: float
    line_bytes: float
    kernel_passes: float
    offload_bandwidth: float = 1e9
    offload_overlaps: bool = False
    conv_flops: Mapping[int, float] = field(default_factory=dict)
    temporal_flops: Mapping[int, float] = field(default_factory=dict)
    attention_flops: Mapping[int, float] = field(default_factory=dict)
    doubt: float = DOUBT
    source: str = "round figures"

    def rate(self, kernel: Kernel, itemsize: int) -> float:
        """Floating point operations per second of a kind of matrix kernel at its best.

        Args:
            kernel: its kind.
            itemsize: bytes per element; float32's rate stands for widths that are not known.
        """
        tables = {
            Kernel.PRODUCT: (),
            Kernel.CONVOLUTION: (self.conv_flops,),
            Kernel.TEMPORAL: (self.temporal_flops, self.conv_flops),
            Kernel.ATTENTION: (self.attention_flops,),
        }[kernel]
        known = [table[itemsize] for table in (*tables, self.flops) if itemsize in table]
        return known[0] if known else self.flops[4]


class Device(StrEnum):
    """The kinds of device that torch comes with and that have a row here."""

    CPU = "cpu"
    CUDA = "cuda"
    CUDA_BEFORE_AMPERE = "cuda-before-ampere"
    XPU = "xpu"
    MPS = "mps"


class HostMemory(StrEnum):
    """Where the offload memory of a device lies."""

    MAPPED = "mapped file"  # of a CPU, whose own memory is the host's
    PINNED = "pinned memory"  # of a device with memory of its own
    UNIFIED = "unified memory"  # the device computes in the host's memory: nothing is gained by moving there


@dataclass(frozen=True)
class DeviceKind:
    """How one kind of device allocates, computes and copies.

    Attributes:
        name: as `torch.device(...).type` gives it; of cards that need a row of their own, a name of ours.
        of_type: as `torch.device(...).type` gives it, where that is not the name.
        machine: round figures for the cost model; only ratios matter to the planner.
        workspace: the column of the workspace table that holds for its kernels.
        granule_bytes: what its allocator rounds the size of every block up to.
        has_counters: whether `torch.accelerator.memory_allocated` and its peaks work. Its allocator then counts all
            that lies on the device, whoever holds it.
        keeps_segments: whether its allocator keeps what is freed, so that more is reserved than allocated.
        has_streams: whether copies run on streams beside what computes.
        host_memory: where its offload memory lies.
        library_bytes: what libraries take from torch's allocator at first use and keep; part of every measured peak.
        in_thread_events: whether torch's profiler of one thread reports its allocations.
        fuses_batch_norm: whether its kernel of `batch_norm_update_stats` needs no copy and rounds nothing, so that it
            serves for the statistics of groups.
        has_float64: whether it has tensors of float64.
        attention: which kernels of attention are counted on, for people; empty where there is nothing to say.
        registers_host: whether memory of the host can be registered where it lies, so that copies overlap without
            the allocator of pinned memory, which rounds every block up to a power of two.
        untested: why nobody should trust the row blindly; empty where it is tested.
    """

    name: str
    machine: Machine
    workspace: str
    granule_bytes: int
    has_counters: bool
    keeps_segments: bool
    has_streams: bool
    host_memory: HostMemory
    library_bytes: int = 0
    in_thread_events: bool = False
    fuses_batch_norm: bool = True
    has_float64: bool = True
    attention: str = ""
    of_type: str = ""
    registers_host: bool = False
    untested: str = ""

    @property
    def torch_type(self) -> str:
        """As `torch.device(...).type` gives it."""
        return self.of_type or self.name

    @property
    def can_offload(self) -> bool:
        """Whether moving values and weights to its offload memory frees memory of the device."""
        return self.host_memory is not HostMemory.UNIFIED

    @property
    def no_offload(self) -> str:
        """Why a plan that could have been offloaded was not, for an error."""
        return "offloading is not allowed" if self.can_offload else f"offloading frees nothing in {self.host_memory}"

    def can_evict(self, *, offload: bool) -> bool:
        """Whether idle components can be moved away: to the CPU; from a CPU to offload memory, if that is allowed.

        Args:
            offload: whether it is.
        """
        return self.host_memory is HostMemory.PINNED or (offload and self.can_offload)


_CPU = DeviceKind(
    Device.CPU.value,
    Machine("cpu", {8: 0.6e11, 4: 1.2e11, 2: 1.0e11}, 1.5e10, 4e9, 1.6e10, 16e6, 15e-6, 64, 16, 64, 6, 1e9, False),
    workspace="cpu",
    granule_bytes=1,  # the allocator counts as asked
    has_counters=False,
    keeps_segments=False,
    has_streams=False,
    host_memory=HostMemory.MAPPED,
    in_thread_events=True,
    fuses_batch_norm=False,
)
_CUDA = DeviceKind(
    Device.CUDA.value,
    Machine("cuda", {8: 1e12, 4: 2e13, 2: 1.2e14}, 1e13, 8e11, 2.5e12, 30e6, 6e-6, 512, 64, 32, 1, 2e10, True),
    workspace="cuda",
    granule_bytes=512,  # CUDACachingAllocator kMinBlockSize
    has_counters=True,
    keeps_segments=True,
    has_streams=True,
    host_memory=HostMemory.PINNED,
    # cuBLAS: 32 MiB on Hopper, 8.1 MiB on older devices (`getChosenWorkspaceSize` in
    # aten/src/ATen/cuda/CublasHandlePool.cpp; the environment variable CUBLAS_WORKSPACE_CONFIG changes it).
    library_bytes=32 * MIB,
    in_thread_events=True,
    registers_host=True,
    attention="fused (flash or memory-efficient) in float16, bfloat16 and float32; float64 holds all scores",
)
_CUDA_BEFORE_AMPERE = replace(
    _CUDA,
    name=Device.CUDA_BEFORE_AMPERE.value,
    of_type=Device.CUDA.value,
    workspace="cuda-before-ampere",
    attention="fused (memory-efficient) in float16 and float32; bfloat16 and float64 hold all scores",
)
_XPU = DeviceKind(
    Device.XPU.value,
    Machine("xpu", {8: 1e12, 4: 1.5e13, 2: 1e14}, 1e13, 4.5e11, 1.5e12, 16e6, 1e-5, 512, 64, 64, 1, 2e10, True),
    workspace="cuda",
    granule_bytes=512,  # XPUCachingAllocator kMinBlockSize; its segments follow CUDA's rules
    has_counters=True,
    keeps_segments=True,
    has_streams=True,
    host_memory=HostMemory.PINNED,
    fuses_batch_norm=False,
    untested="no model has run on it yet; workspace is that of CUDA's kernels",
)
_MPS = DeviceKind(
    Device.MPS.value,
    Machine("mps", {8: 1e12, 4: 1.2e13, 2: 1.3e13}, 5e12, 3.5e11, 1e12, 24e6, 2e-5, 256, 64, 64, 1, 3.5e11, False),
    workspace="cuda",
    granule_bytes=256,  # alignment of buffers in a Metal heap
    has_counters=False,  # torch.mps counts what is allocated now, and no peak
    keeps_segments=True,
    has_streams=False,
    host_memory=HostMemory.UNIFIED,
    fuses_batch_norm=False,
    has_float64=False,
    untested="no model has run on it yet; workspace is that of CUDA's kernels, and peaks can't be measured",
)

ROWS = (_CPU, _CUDA, _CUDA_BEFORE_AMPERE, _XPU, _MPS)

PLANNED_FOR = Device.CUDA  # by commands that plan without a model's own device, where nobody says
