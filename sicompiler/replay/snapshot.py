"""Replayed runs as a memory snapshot of torch, which its viewer opens (docs.pytorch.org/memory_viz).

The format is that of `torch.cuda.memory._snapshot()`: segments with their blocks as they are at the end, and for each
device what its allocator did. Every run is a device of its own, so one file can show a model unsliced and planned.
Times are numbers of events. Files are written and never read.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sicompiler.errors import BadInput
from sicompiler.facts.allocator import CachingAllocator
from sicompiler.facts.memory_blocks import MemoryBlock


def snapshot(runs: Sequence[CachingAllocator]) -> dict[str, Any]:
    """Allocators as torch tells of those of its devices.

    Args:
        runs: traced; the first is device 0.
    """
    return {
        "segments": [
            _segment(device, blocks, memory) for device, memory in enumerate(runs) for blocks in memory.segments()
        ],
        "device_traces": [_trace(device, memory) for device, memory in enumerate(runs)],
        "allocator_settings": {
            "PYTORCH_ALLOC_CONF": "",
            "max_split_size": -1,
            "garbage_collection_threshold": 0.0,
            "expandable_segments": any(memory.rules.expandable for memory in runs),
            "pinned_num_register_threads": 1,
            "release_lock_on_cudamalloc": False,
            "pinned_use_cuda_host_register": False,
            "roundup_power2_divisions": {},
        },
        "external_annotations": [],
    }


def write_snapshot(path: str | Path, runs: Sequence[CachingAllocator]) -> Path:
    """Write a snapshot for torch's viewer.

    Args:
        path: of the file.
        runs: traced allocators, the first as device 0.

    Raises:
        BadInput: it can't be written.
    """
    target = Path(path).expanduser()
    try:
        target.write_bytes(pickle.dumps(snapshot(runs), protocol=4))
    except OSError as error:
        raise BadInput(f"can't write the snapshot {path}: {error.strerror}") from error
    return target


def _segment(device: int, blocks: Sequence[MemoryBlock], memory: CachingAllocator) -> Mapping[str, Any]:
    in_use = sum(block.size for block in blocks if block.in_use)
    first = blocks[0]
    return {
        "device": device,
        "address": first.address,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": in_use,
        "active_size": in_use,
        "requested_size": sum(block.requested for block in blocks),
        "stream": first.stream,
        "segment_type": "small" if first.pool.is_small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": memory.rules.expandable,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested,
                "state": "active_allocated" if block.in_use else "inactive",
                "frames": _frames(block.name),
            }
            for block in blocks
        ],
    }


def _trace(device: int, memory: CachingAllocator) -> list[Mapping[str, Any]]:
    return [
        {
            "action": entry.action,
            "addr": entry.address,
            "size": entry.size,
            "stream": entry.stream,
            "device": device,
            "pool_id": (0, 0),
            "time_us": number,
            "compile_context": "N/A",
            "user_metadata": "",
            "frames": _frames(entry.name),
        }
        for number, entry in enumerate(memory.trace or ())
    ]


def _frames(name: str) -> list[Mapping[str, Any]]:
    """Who has a block, in the place of a stack: operator and name as the function, the module as its file."""
    if not name:
        return []
    who, _, where = name.partition(" in ")
    return [{"name": who, "filename": where or "graph", "line": 0}]
