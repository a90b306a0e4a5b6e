"""Capture: a module and example inputs become a `Program`, a pure graph with parameters as inputs.

`torch.export` runs under fake tensors, so nothing of the model's size is allocated. Parameters and buffers are
placeholders of the graph, and are looked up by name in the live model at every call: what moves, is cast or is
replaced in the model is followed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.immutable_collections import immutable_dict, immutable_list

from sicompiler.errors import CaptureError


class Source(StrEnum):
    """Where the value of a placeholder comes from."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    INPUT = "input"


_SOURCES = {
    InputKind.PARAMETER: Source.PARAMETER,
    InputKind.BUFFER: Source.BUFFER,
    InputKind.CONSTANT_TENSOR: Source.CONSTANT,
    InputKind.USER_INPUT: Source.INPUT,
}


@dataclass(frozen=True)
class Binding:
    """One placeholder: the name it has in the live model, or the position among the flattened inputs."""

    source: Source
    name: str


@dataclass(frozen=True)
class Program:
    """A captured model: `graph_module(*placeholders) -> tuple of outputs`, all pure.

    Attributes:
        graph_module: the graph; `node.meta["val"]` holds a fake tensor for every value.
        bindings: one per placeholder, in order.
        constants: tensors the model creates while it is traced, by name.
        out_spec: how the flat outputs form what the model returns.
        fake_mode: the mode all fake tensors of the graph belong to.
    """

    graph_module: fx.GraphModule
    bindings: tuple[Binding, ...]
    constants: Mapping[str, torch.Tensor]
    out_spec: pytree.TreeSpec
    fake_mode: FakeTensorMode

    def with_graph(self, graph_module: fx.GraphModule) -> Program:
        """The same program with another graph behind the same placeholders."""
        return Program(graph_module, self.bindings, self.constants, self.out_spec, self.fake_mode)

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        """The placeholder nodes, one per binding."""
        return tuple(self.graph_module.graph.find_nodes(op="placeholder"))

    def arguments(self, model: torch.nn.Module, inputs: Sequence[Any]) -> list[Any]:
        """What to call the graph with: parameters by name from the live model, then the flat inputs.

        Args:
            model: the live model.
            inputs: flattened by `flatten_inputs`.
        """
        tensors = named_tensors(model)
        flat = iter(inputs)
        values: list[Any] = []
        for binding in self.bindings:
            if binding.source is Source.INPUT:
                values.append(next(flat))
            elif binding.source is Source.CONSTANT:
                values.append(self.constants[binding.name])
            else:
                values.append(tensors[binding.name])
        return values


def named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a live model by name, shared ones under every name they have."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def flatten_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten a call's inputs; keyword arguments in the order of their names."""
    return pytree.tree_flatten((tuple(args), {name: kwargs[name] for name in sorted(kwargs)}))


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of the storages behind the parameters and buffers of a model, shared ones once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in named_tensors(model).values()}
    return sum(storages.values())


def _fake_mode_of(tensors: Sequence[Any]) -> FakeTensorMode | None:
    for tensor in tensors:
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    return None


@contextlib.contextmanager
def _capture_errors(model: torch.nn.Module) -> Iterator[None]:
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:  # torch.export raises anything, from UserError to the model's own exceptions
        name = type(model).__name__
        raise CaptureError(f"{name} can't be captured: {_reason(error)}\n{_advice(error)}") from error


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {first[0] if first else 'no message'}"
    where = None
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not re.search(r"[/\\](torch|sicompiler)[/\\]", filename) and not filename.startswith("<"):
            where = f"{filename}:{trace.tb_lineno}, in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    user = re.search(r"^\s*File \"([^\"]+)\", line (\d+), in (\S+)", str(error), re.MULTILINE)
    if where is None and user is not None:
        where = f"{user[1]}:{user[2]}, in {user[3]}"
    return text if where is None else f"{text}\n  at {where}"


def _advice(error: Exception) -> str:
    if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
        return "  its control flow depends on tensor values; pass those decisions in as Python values"
    return "  the model must be traceable by torch.export.export(model, args, kwargs, strict=False)"


def capture(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, method: str = "forward"
) -> Program:
    """Trace a model into a `Program`.

    Args:
        model: any module that `torch.export` can trace; its parameters may be real or fake tensors.
        args: positional example inputs; only shapes, dtypes, devices and Python values matter.
        kwargs: keyword example inputs.
        method: which of its methods to trace, e.g. the `decode` of a VAE. Parameters keep their names in the model.

    Raises:
        CaptureError: the model can't be traced, or it writes into its inputs or buffers.
    """
    kwargs = {name: (kwargs or {})[name] for name in sorted(kwargs or {})}
    mode = _fake_mode_of([*pytree.tree_leaves((args, kwargs)), *named_tensors(model).values()])
    with (
        _capture_errors(model),
        torch.no_grad(),
        mode or contextlib.nullcontext(),
        paused_gc(),
        _as_forward(model, method),
    ):
        exported = torch.export.export(model, tuple(args), kwargs, strict=False)
        if any(_mutates(node) for node in exported.graph.nodes):
            exported = exported.run_decompositions({})
    return _program(model, exported)


@contextlib.contextmanager
def _as_forward(model: torch.nn.Module, method: str) -> Iterator[None]:
    """Let `torch.export`, which traces `forward`, find another method there; a wrapper would rename the parameters."""
    if method == "forward":
        yield
        return
    before = model.__dict__.get("forward")
    model.__dict__["forward"] = getattr(model, method)
    try:
        yield
    finally:
        if before is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = before


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Keep the cyclic collector out of code that makes many long-lived nodes: it takes a sixth of the time there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _program(model: torch.nn.Module, exported: torch.export.ExportedProgram) -> Program:
    name = type(model).__name__
    bindings = []
    for position, spec in enumerate(exported.graph_signature.input_specs):
        if spec.kind not in _SOURCES:
            raise CaptureError(
                f"{name} takes an input of kind {spec.kind.name} ({spec.arg.name}), which is not supported"
            )
        source = _SOURCES[spec.kind]
        bindings.append(Binding(source, str(position) if source is Source.INPUT else str(spec.target)))
    for out in exported.graph_signature.output_specs:
        if out.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"{name} writes into {out.target!r} ({out.kind.name.lower()}) while it runs; "
                "only models without side effects can be compiled"
            )
    for node in exported.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise CaptureError(
                f"{name}: {node.op} {node.name} in the captured graph is not supported: {node.format_node()}"
            )
    graph_module = fx.GraphModule(torch.nn.Module(), exported.graph)
    modes = [n.meta["val"].fake_mode for n in exported.graph.nodes if isinstance(n.meta.get("val"), FakeTensor)]
    if not modes:
        raise CaptureError(f"{name} computes nothing with tensors")
    out_spec = exported.call_spec.out_spec
    assert out_spec is not None
    return Program(graph_module, tuple(bindings), dict(exported.constants), _plain(out_spec), modes[0])


_PLAIN = {immutable_dict: dict, immutable_list: list}


def _plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The structure the model returns: where an output is None, torch.export tells it with containers of torch.fx."""
    if spec.is_leaf():
        return spec
    return pytree.TreeSpec(_PLAIN.get(spec.type, spec.type), spec.context, [_plain(c) for c in spec.children()])


def fingerprint(graph: fx.Graph) -> str:
    """A short hash of a graph: operators, arguments, shapes, strides, dtypes and devices of every value.

    Node names do not count, so the same model captured twice has the same fingerprint.
    """
    number = {node: index for index, node in enumerate(graph.nodes)}

    def show(argument: Any) -> str:
        return repr(fx.node.map_arg(argument, lambda n: f"%{number[n]}"))

    digest = hashlib.sha256()
    for node in graph.nodes:
        value = node.meta.get("val")
        facts = [
            (tuple(t.shape), t.stride(), str(t.dtype), str(t.device))
            for t in pytree.tree_leaves(value)
            if isinstance(t, torch.Tensor)
        ]
        target = str(node.target) if node.op == "call_function" else ""
        digest.update(f"{node.op} {target} {show(node.args)} {show(node.kwargs)} {facts}\n".encode())
    return digest.hexdigest()[:16]
