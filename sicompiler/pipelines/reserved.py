"""What is on the device beside the component that runs: other weights, and tensors that the pipeline itself holds.

On CUDA the allocator knows. The CPU's allocator does not count, so there the tensors are looked for where a pipeline
keeps them: in the local variables of its running functions, in its scheduler and in itself.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from types import FrameType, FunctionType, ModuleType
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.compiled_module import CompiledModule
from sicompiler.device import device_kind
from sicompiler.guards.identity import version
from sicompiler.pipelines.components import components_of, modules_of, pipeline_class
from sicompiler.pipelines.weights import storages, weights_of
from sicompiler.runtime.faults import locals_of
from sicompiler.runtime.placement import streams

UNSEEN_BYTES = 2**12  # numbers and small tables, of kernels and in closures, where nobody looks
ATTRIBUTE = "_sicompiler"  # of a pipeline: what we keep for it, so that it lives as long as the pipeline
_PLAIN = frozenset({str, int, float, bool, bytes, type(None), torch.dtype, torch.device})  # hold no tensors
_OURS = __name__.split(".")[0] + "."
_DEPTH = 4  # outputs, distributions, lists of them: no pipeline nests its tensors deeper


@dataclass(frozen=True)
class Reserved:
    """Bytes on the device while a component runs that are not its own.

    Attributes:
        weights: of the other components that are resident, by name; a storage shared by two counts at the first.
        held_bytes: latents, embeddings, finished frames and whatever else is alive, the inputs of the call left out.
        margin_bytes: kept free for what nobody counts; part of every prediction, of no measurement.
        snapshot_bytes: kept free for features that Step Rehash keeps from step to step; part of every prediction.
        own_bytes: of the component's own weights on the device; None where they are streamed.
    """

    weights: tuple[tuple[str, int], ...] = ()
    held_bytes: int = 0
    margin_bytes: int = 0
    snapshot_bytes: int = 0
    own_bytes: int | None = None

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights of all other components together."""
        return sum(nbytes for _, nbytes in self.weights)

    @property
    def total_bytes(self) -> int:
        """What the component must leave free of the budget."""
        return self.weights_bytes + self.held_bytes + self.margin_bytes + self.snapshot_bytes


def reserved(
    pipe: Any,
    model: torch.nn.Module,
    inputs: Any,
    device: torch.device,
    elsewhere: Iterable[torch.nn.Module] = (),
) -> Reserved:
    """What the rest of a pipeline occupies while one of its components runs.

    Args:
        pipe: the pipeline the component was compiled with; the one that calls it is found by itself. None if gone.
        model: the component.
        inputs: of the call, in any structure.
        device: where the component runs.
        elsewhere: components of other pipelines that have a budget of their own; those that are shared count here.
    """
    calling, frames = _calling(pipe)
    owners = _distinct(pipe, calling)
    parts = [part for owner in owners for part in modules_of(owner).items()]
    resident = _resident(model, parts, device)
    rows, known, own_bytes = resident.rows, resident.known, None if streams(model) else resident.own_bytes
    own_inputs = storages((x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)), device)
    if device_kind(device).has_counters:
        others = {key: nbytes for part in elsewhere for key, nbytes in weights_of(part, device).items()}
        counted = sum({**others, **own_inputs, **known}.values())
        return Reserved(rows, max(torch.accelerator.memory_allocated(device) - counted, 0), own_bytes=own_bytes)
    roots = [value for frame in frames for value in frame]
    apart = set[int]()  # pipelines, looked at here, and components, of which tokenizers are large and without tensors
    for owner in owners:
        apart |= {id(owner), *map(id, components_of(owner).values())}
        for keeper in (owner, getattr(owner, "scheduler", None)):
            roots += [value for name, value in getattr(keeper, "__dict__", {}).items() if name != ATTRIBUTE]
    held = storages(_tensors(roots, apart), device)
    found = sum(n for key, n in held.items() if key not in known and key not in own_inputs)
    return Reserved(rows, found, UNSEEN_BYTES, own_bytes=own_bytes)


@dataclass(frozen=True)
class _Resident:
    """Weights on a device beside those of a component.

    Attributes:
        read: bytes by storage of each component, of which this was made: its own at the front.
        names: of the others.
        rows: bytes by component; a storage shared by two counts at the first.
        known: bytes by storage of all of them.
        own_bytes: of its own.
    """

    read: list[Mapping[int, int]]
    names: list[str]
    rows: tuple[tuple[str, int], ...]
    known: Mapping[int, int]
    own_bytes: int


_residents: weakref.WeakKeyDictionary[torch.nn.Module, _Resident] = weakref.WeakKeyDictionary()


def _resident(model: torch.nn.Module, parts: Sequence[tuple[str, torch.nn.Module]], device: torch.device) -> _Resident:
    """What the components of a pipeline take beside one of them; added up anew where one takes another than before."""
    own = weights_of(model, device)
    names = [name for name, _ in parts]
    read = [own, *(own if part is model else weights_of(part, device) for _, part in parts)]
    before = _residents.get(model)
    if before is not None and before.names == names and all(map(operator.is_, before.read, read)):
        return before
    rows, known = list[tuple[str, int]](), dict(own)
    for name, weights in zip(names, read[1:], strict=True):
        other = {key: nbytes for key, nbytes in weights.items() if key not in known}
        known |= other
        if sum(other.values()):
            rows.append((name, sum(other.values())))
    found = _residents[model] = _Resident(read, names, tuple(rows), known, sum(own.values()))
    return found


def _distinct(*pipes: Any) -> list[Any]:
    return list({id(pipe): pipe for pipe in pipes if pipe is not None}.values())


def _calling(pipe: Any) -> tuple[Any, list[list[Any]]]:
    """The outermost pipeline whose call led here, and the local variables of every function from there on.

    One that was compiled itself, and calls the pipeline in question, has a budget of its own: it is not looked at.
    """
    base = pipeline_class()
    frame: FrameType | None = sys._getframe(1)
    found: Any = None
    upto, frames = 0, list[list[Any]]()
    while frame is not None and base is not None:
        ours = frame.f_globals.get("__name__", "").startswith(_OURS)  # these hold plans and the inputs of the call
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED and not ours:  # a function; locals of a module are its globals
            names = locals_of(frame)
            owner = names.get("self")
            if isinstance(owner, base):
                if upto and pipe is not None and owner is not pipe and ATTRIBUTE in owner.__dict__:
                    break
                found, upto = owner, len(frames) + 1
            frames.append(list(names.values()))
        frame = frame.f_back
    return found, frames[:upto]


class _Kind(Enum):
    """What may hold tensors, by class."""

    PLAIN = "nothing that counts here"
    TENSOR = "a tensor"
    MAPPING = "a dict or like one"
    SEQUENCE = "a list or tuple"
    OBJECT = "an object with attributes"


@functools.lru_cache(maxsize=2**12)
def _kind_of(kind: type[Any]) -> _Kind:
    """What objects of a class are to who looks for tensors; plans and what belongs to them are ours, and large."""
    if issubclass(kind, torch.Tensor):
        return _Kind.TENSOR
    if kind in _PLAIN or issubclass(kind, (torch.nn.Module, CompiledModule, type, ModuleType, FunctionType)):
        return _Kind.PLAIN
    if issubclass(kind, Mapping):
        return _Kind.MAPPING
    return _Kind.SEQUENCE if issubclass(kind, (list, tuple)) else _Kind.OBJECT


_plain_versions = set[int]()  # of dicts in which there is nothing to look for; no other dict ever has one of these
_MAX_VERSIONS = 2**10


def _is_plain(value: Any) -> bool:
    """Whether a value holds no tensor and never will."""
    kind = type(value)
    return all(map(_is_plain, value)) if kind is tuple else _kind_of(kind) is _Kind.PLAIN  # type: ignore[arg-type]


def _holds_plain_only(value: Mapping[Any, Any]) -> bool:
    """Whether nothing in a dict may hold tensors, as in configurations, which are large: seen once a version."""
    if not isinstance(value, dict):
        return False
    now = version(value)
    if now in _plain_versions:
        return True
    if not all(map(_is_plain, dict.values(value))):
        return False
    if len(_plain_versions) >= _MAX_VERSIONS:
        _plain_versions.clear()
    _plain_versions.add(now)
    return True


def _tensors(values: Iterable[Any], apart: Set[int]) -> list[torch.Tensor]:
    """Tensors among values and in what they hold; not in objects whose ids are `apart`."""
    found: list[torch.Tensor] = []
    level = list(values)
    for _ in range(_DEPTH):
        inside: list[Any] = []
        for value in level:
            kind = _kind_of(type(value))  # type: ignore[arg-type]  # a class has a hash
            if kind is _Kind.PLAIN:
                continue
            if kind is _Kind.TENSOR:
                found.append(value)
            elif id(value) in apart:
                continue
            elif kind is _Kind.SEQUENCE:
                inside += value
            elif kind is _Kind.OBJECT:
                inside += getattr(value, "__dict__", {}).values()
            elif not _holds_plain_only(value):
                inside += value.values()
        level = inside
    return [*found, *(value for value in level if isinstance(value, torch.Tensor))]
