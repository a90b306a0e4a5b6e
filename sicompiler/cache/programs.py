"""A program as bytes, and back: its graph as JSON, its constants as safetensors."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sicompiler.cache.graphs import Broken, Json, Packer, Unpackable, Unpacker
from sicompiler.cache.results import pack_spec, unpack_spec
from sicompiler.capture import Binding, Program, Source
from sicompiler.capture.decisions import Decided, Decision
from sicompiler.collector import paused_gc
from sicompiler.guards.tensors import bytes_of

MOST_CONSTANT_BYTES = 2**28  # a model that holds more beside its weights is not kept
_GRAPH = "graph"


def pack_program(program: Program) -> bytes:
    """A program as bytes.

    Raises:
        Unpackable: something of it has no form in a file; the message says what.
    """
    tensors: dict[str, torch.Tensor] = {}
    with paused_gc():
        text = json.dumps(_packed(program, tensors), separators=(",", ":"), allow_nan=True)
    graph = torch.frombuffer(bytearray(zlib.compress(text.encode(), 1)), dtype=torch.uint8)
    return safetensors.torch.save({_GRAPH: graph, **tensors})


def unpack_program(data: bytes, live: Sequence[torch.Tensor] = ()) -> Program:
    """The program that was packed.

    Args:
        data: from `pack_program`.
        live: tensors of the model that its constants may be: those are taken in place of a copy.

    Raises:
        Broken: the bytes are no program, or one with operators or classes that are not there.
    """
    try:
        with paused_gc():
            tensors = safetensors.torch.load(data)
            text = zlib.decompress(tensors.pop(_GRAPH).numpy().tobytes())
            return _unpacked(json.loads(text), tensors, live)
    except Broken:
        raise
    except Exception as error:  # whatever a file that was tampered with leads to
        raise Broken(f"it can't be read: {type(error).__name__}: {error}") from error


def _packed(program: Program, tensors: dict[str, torch.Tensor]) -> Json:
    packer = Packer()
    graph = packer.graph(program.graph_module)
    return {
        "graph": graph,
        "storages": packer.storages,
        "texts": packer.texts,
        "bindings": [[binding.source.value, binding.name] for binding in program.bindings],
        "constants": _pack_constants(program.constants, tensors),
        "results": pack_spec(program.out_spec),
        "decided": [
            [_packed(one.decision.program, tensors), one.decision.where, one.decision.is_fixed, list(one.outcome)]
            for one in program.decided
        ],
    }


def _pack_constants(constants: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Json:
    """Constants by name: their layout, and in which storage they lie; each storage is kept once."""
    rows: dict[str, Json] = {}
    names: dict[int, str] = {}
    for name, tensor in constants.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if isinstance(tensor, FakeTensor):
            rows[name] = [None, dtype, str(tensor.device), list(tensor.shape), list(tensor.stride()), 0]
            continue
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise Unpackable(f"the constant {name}, a {type(tensor).__name__}")
        storage = tensor.untyped_storage()
        if (
            tensor.is_conj()
            or tensor.is_neg()
            or tensor.layout is not torch.strided
            or tensor.is_meta
            or storage.nbytes() > MOST_CONSTANT_BYTES
        ):
            raise Unpackable(f"the constant {name} of {tensor.nbytes} bytes, layout {tensor.layout}")
        if storage._cdata not in names:
            names[storage._cdata] = key = f"storage {len(tensors)}"
            plain = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            tensors[key] = plain.cpu().clone()
        layout = [list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
        rows[name] = [names[storage._cdata], dtype, str(tensor.device), *layout]
    return rows


def _unpacked(data: Json, tensors: Mapping[str, torch.Tensor], live: Sequence[torch.Tensor]) -> Program:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    unpacker = Unpacker(data["storages"], data["texts"], mode)
    decided = tuple(
        Decided(Decision(_unpacked(program, tensors, live), where, is_fixed), tuple(outcome))
        for program, where, is_fixed, outcome in data["decided"]
    )
    return Program(
        graph_module=unpacker.graph(data["graph"]),
        bindings=tuple(Binding(Source(source), name) for source, name in data["bindings"]),
        constants=_unpack_constants(data["constants"], tensors, live, mode),
        out_spec=unpack_spec(data["results"]),
        fake_mode=mode,
        decided=decided,
    )


def _unpack_constants(
    data: Json, tensors: Mapping[str, torch.Tensor], live: Sequence[torch.Tensor], mode: FakeTensorMode
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, (key, dtype, device, size, stride, offset) in data.items():
        kind = getattr(torch, dtype)
        if key is None:  # of a model without memory
            meta = torch.empty_strided(size, stride, dtype=kind, device="meta")
            found[name] = FakeTensor(mode, meta, torch.device(device))
            continue
        storage = tensors[key].to(device).untyped_storage()
        made = torch.empty(0, dtype=kind, device=device).set_(storage, offset, size, stride)
        same = [t for t in live if _equal(t, made)]
        found[name] = same[0] if len(same) == 1 else made  # of two alike nobody knows which it was
    return found


def _equal(some: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are alike in everything, bit for bit."""
    return (
        not isinstance(some, FakeTensor)
        and not (some.is_conj() or some.is_neg())
        and (some.shape, some.dtype, some.device) == (other.shape, other.dtype, other.device)
        and some.stride() == other.stride()
        and bytes_of(some) == bytes_of(other)
    )
