"""A run of a plan in a model of the device's allocator."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

from torch import fx

from sicompiler.capture import Program, Source
from sicompiler.device import device_kind
from sicompiler.errors import BadInput
from sicompiler.facts.allocator import CachingAllocator, MemoryPeaks
from sicompiler.facts.memory_blocks import AllocatorRules, MemoryBlock
from sicompiler.facts.modules import module_path
from sicompiler.plan import Plan
from sicompiler.replay.events import Events, MemoryEvent, RunFollower

SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # environment variables of torch's allocators


def rules_of(device_type: str) -> AllocatorRules | None:
    """The rules of a device's caching allocator, as the environment sets them; None where it has none that is known.

    Args:
        device_type: the name of a kind of device.
    """
    kind = device_kind(device_type)
    if not (kind.keeps_segments and kind.has_counters):
        return None
    settings = next((os.environ[name] for name in SETTINGS if name in os.environ), "")
    expandable = "expandable_segments:true" in settings.replace(" ", "").lower()
    return AllocatorRules(granule_bytes=kind.granule_bytes, expandable=expandable)


def replay_run(
    program: Program, plan: Plan, memory: CachingAllocator, held: Iterable[tuple[str, int]] = ()
) -> MemoryPeaks:
    """Replay a run in an allocator: what is held beside, weights, inputs, then what the graph allocates and releases.

    Args:
        program: the rewritten program of a plan.
        plan: the plan.
        memory: an allocator of the plan's device; keeps what is alive at the end.
        held: what is on the device beside: names and bytes.
    """
    follower = RunFollower(program, plan.device, plan.streamed)
    given = list(follower.given())
    read = sum(memory.rules.rounded(nbytes) for _, source, nbytes in given if source is not Source.INPUT and nbytes)
    before = [
        *held,
        *((f"{source.value} {node.name}", nbytes) for node, source, nbytes in given),
        ("weights that are not read", plan.weights_bytes - read),
        ("workspace of the library for products", device_kind(plan.device).library_bytes),
    ]
    for name, nbytes in before:
        if nbytes > 0:
            memory.allocate(nbytes, name=name)
    replay(memory, follower.run())
    return memory.peaks


def traced_run(program: Program, plan: Plan) -> CachingAllocator:
    """A run with all that the allocator did in it, for a snapshot.

    Args:
        program: the rewritten program of a plan, or the one it was made from.
        plan: the plan.

    Raises:
        BadInput: nothing is known of the allocator of the plan's device.
    """
    rules = rules_of(plan.device)
    if rules is None:
        raise BadInput(f"snapshots are of devices whose allocator keeps segments; that of {plan.device} keeps none")
    memory = CachingAllocator(rules, traced=True)
    replay_run(program, plan, memory)
    return memory


def unsliced_run(program: Program, plan: Plan) -> CachingAllocator:
    """A run of the program that a plan was made for, with everything on the device.

    Args:
        program: as captured.
        plan: made for it.

    Raises:
        BadInput: nothing is known of the allocator of the plan's device.
    """
    weights = plan.weights_bytes + plan.streamed_bytes
    return traced_run(program, dataclasses.replace(plan, streamed=(), streamed_bytes=0, weights_bytes=weights))


def replay(memory: CachingAllocator, events: Events) -> None:
    """Do in an allocator what events say.

    What is repeated ends early once it has left the allocator as it found it: from there on every time is the same.
    """
    _replay(memory, events, {})


def _replay(memory: CachingAllocator, events: Events, blocks: dict[int, MemoryBlock]) -> None:
    traced = memory.trace is not None
    for event in events:
        if isinstance(event, MemoryEvent):
            key, nbytes, node, what = event
            if nbytes:
                blocks[key] = memory.allocate(nbytes, name=_label(node, what) if traced else "")
            else:
                memory.free(blocks.pop(key))
            continue
        before = memory.free_blocks(), memory.reserved_bytes
        for _ in range(event.times):
            _replay(memory, event.events, blocks)
            after = memory.free_blocks(), memory.reserved_bytes
            if after == before:
                break
            before = after


def _label(node: fx.Node | None, what: str) -> str:
    """What a block is called: operator, name and module of who made it."""
    if node is None:
        return what
    path = module_path(node)
    return " ".join([f"{node.target} {node.name}", *([what] if what else []), *([f"in {path}"] if path else [])])
