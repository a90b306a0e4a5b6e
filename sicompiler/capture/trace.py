"""Tracing: a module and example inputs become a `Program`.

`torch.export` runs under fake tensors, so nothing of the model's size is allocated. Parameters and buffers are
placeholders of the graph, and are looked up by name in the live model at every call: what moves, is cast or is
replaced in the model is followed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.immutable_collections import immutable_dict, immutable_list

from sicompiler.capture.aliases import spell_out_aliases
from sicompiler.capture.bounded import bound_lengths
from sicompiler.capture.branches import branches_in_python
from sicompiler.capture.contexts import casts_by_itself, drop_unread_maps, graphs, inline_contexts, maps_by_itself
from sicompiler.capture.decisions import Decide, decide_at_once
from sicompiler.capture.draws import draws
from sicompiler.capture.entry import FORWARD, entry_module, has_method
from sicompiler.capture.flex import dense_flex_attention
from sicompiler.capture.functional import functionalized
from sicompiler.capture.lean import lean_trace
from sicompiler.capture.live_tensors import named_tensors
from sicompiler.capture.program import Binding, Program, Source, flatten_inputs, module_of
from sicompiler.capture.quantised import refusal, scheme_of
from sicompiler.capture.questions import Decider, Decides, NoValues
from sicompiler.capture.reasons import advice, reason, source_line
from sicompiler.capture.rehearsal import Score
from sicompiler.capture.results import with_open_results
from sicompiler.capture.selections import spell_out_sizes
from sicompiler.capture.silence import silent_torch
from sicompiler.capture.state import TracedEntry, graph_shown, state_kept
from sicompiler.capture.taped import ModelRaised, taped
from sicompiler.capture.tiling import check_tiling
from sicompiler.capture.uncompiled import as_in_a_plain_call
from sicompiler.collector import paused_gc
from sicompiler.errors import BadInput, CaptureError, SicompilerError
from sicompiler.turns import tracing

_SOURCES = {
    InputKind.PARAMETER: Source.PARAMETER,
    InputKind.BUFFER: Source.BUFFER,
    InputKind.CONSTANT_TENSOR: Source.CONSTANT,
    InputKind.USER_INPUT: Source.INPUT,
}


def _fake_mode_of(tensors: Sequence[Any]) -> FakeTensorMode | None:
    for tensor in tensors:
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    return None


@contextlib.contextmanager
def _capture_errors(model: torch.nn.Module) -> Iterator[None]:
    try:
        yield
    except SicompilerError:
        raise
    except Exception as raised:  # torch.export raises anything, from UserError to the model's own exceptions
        error = raised.__cause__ if isinstance(raised, ModelRaised) else raised
        assert isinstance(error, Exception)
        if isinstance(error, SicompilerError):
            raise error from error.__cause__
        name = type(model).__name__
        raise CaptureError(f"{name} can't be captured: {reason(error)}\n{advice(error)}") from error


def _check_entry(model: torch.nn.Module, method: str) -> None:
    if not has_method(model, method):
        raise BadInput(f"{type(model).__name__} has no method {method!r} to capture")
    check_tiling(f"this {type(model).__name__}", model, method)


def capture(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    method: str = FORWARD,
    decide: Decide = decide_at_once,
) -> Program:
    """Trace a model into a `Program`.

    Args:
        model: any module that `torch.export` can trace; its parameters may be real or fake tensors.
        args: positional example inputs; only shapes, dtypes, devices and Python values matter, but for a model that
            decides by values: the program is that for what these values decide, see `Program.decided`.
        kwargs: keyword example inputs.
        method: the entry point: the name of the method that is called, such as `decode`.
        decide: runs the decisions.

    Raises:
        CaptureError: the model can't be traced, it writes into its inputs or buffers, or it asks for values of tensors
            that have none, as fake tensors do.
        BadInput: called under `torch.autocast`; there is no such method; the model blends tiles.
    """
    kwargs = {name: (kwargs or {})[name] for name in sorted(kwargs or {})}
    tensors = named_tensors(model)
    leaves = flatten_inputs(args, kwargs)[0]
    check_no_autocast([*leaves, *tensors.values()])
    _check_entry(model, method)
    scheme = scheme_of(model)
    if scheme:
        raise CaptureError(refusal(type(model).__name__, scheme))
    for path, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise CaptureError(
                f"{type(model).__name__} can't be captured: `{path}` is a {type(part).__name__} of torch.jit, which "
                "runs past Python\n  take the module that it was scripted or traced from"
            )
    mode = _fake_mode_of([*leaves, *tensors.values()])
    refused: CaptureError | None = None
    for decides in Decides:  # first without values, as a graph for all of them is better
        decider = Decider(decides, decide, tensors, leaves)
        once, twice = (Decider(decides, decide_at_once, tensors, leaves * calls) for calls in (1, 2))
        try:
            return _trace(model, tuple(args), kwargs, method, mode, decider, once, twice)
        except NoValues as error:
            raise CaptureError(f"{refused}\n  {error}" if refused else f"{type(model).__name__}: {error}") from error
        except CaptureError as error:
            refused = error
            if not (decider.left_open or twice.left_open):
                break
    assert refused is not None
    raise refused


def _trace(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    method: str,
    mode: FakeTensorMode | None,
    decider: Decider,
    once: Decider,
    twice: Decider,
) -> Program:
    """Trace a model, with as much decided as a decider decides.

    Args:
        model: the live model.
        args: positional inputs.
        kwargs: keyword inputs, in the order of their names.
        method: the entry point.
        mode: of the fake tensors among inputs and weights; None where there are none.
        decider: answers what the call asks.
        once: answers what one more call asks, which is traced where the first leaves something behind.
        twice: answers what two calls in a row ask, which are traced where that does not settle it.
    """
    with (
        tracing(),
        as_in_a_plain_call(),
        _capture_errors(model),
        silent_torch(),
        torch.no_grad(),
        mode or contextlib.nullcontext(),
        paused_gc(),
        lean_trace(),
        branches_in_python(),
        dense_flex_attention(),
        state_kept(model, method) as undo,
        _stand_in(model, method, decider) as (module, scores),
    ):
        entry = TracedEntry(module, method, type(model).__name__, undo, with_open_results(module.forward, model))
        with entry.watched() as watched:
            exported = torch.export.export(watched, args, kwargs, strict=False)
            shown = functools.partial(graph_shown, exported)
            program: Program | None = None
            if decider.left_open:  # a graph that does not do is refused before it is asked what calls leave behind
                shown = functools.partial(lambda known: known, graph_shown(exported))
                program = _program(model, _pure(exported, type(model).__name__))
            with taped(module, once):
                settled = entry.settles(scores[-1] if scores else None, shown, args, kwargs)
        if not settled:
            with taped(module, twice):
                entry.check(args, kwargs)
        if program is None:
            exported = _pure(exported, type(model).__name__)
    return replace(program or _program(model, exported), decided=tuple(decider.decided))


@contextlib.contextmanager
def _stand_in(model: torch.nn.Module, method: str, decider: Decider) -> Iterator[tuple[torch.nn.Module, list[Score]]]:
    """What is traced in the place of a model, on tape; made here, where all that a trace patches is patched."""
    module = entry_module(model, method)
    with taped(module, decider) as scores:
        yield module, scores


def _pure(exported: torch.export.ExportedProgram, name: str) -> torch.export.ExportedProgram:
    """A traced program without contexts and without operators that write.

    Args:
        exported: the program.
        name: of the model.
    """
    drop_unread_maps(exported.graph_module)
    if not casts_by_itself(exported.graph_module):
        inline_contexts(exported.graph_module)  # what is written inside of one is seen outside
    if any(needs(exported.graph_module) for needs in (_mutates, casts_by_itself, maps_by_itself)):
        spell_out_sizes(exported.graph_module)
        spell_out_aliases(exported.graph_module, name)
        exported = functionalized(exported)
    inline_contexts(exported.graph_module)
    return exported


def check_no_autocast(values: Iterable[Any]) -> None:
    """Refuse to capture or run a graph under `torch.autocast`: operators are traced without the casts it makes.

    Args:
        values: what the graph works on; an autocast for another kind of device does not matter.

    Raises:
        BadInput: an autocast is on for the device of some tensor.
    """
    if not torch._C._is_any_autocast_enabled():
        return
    for device_type in sorted({value.device.type for value in values if isinstance(value, torch.Tensor)}):
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            dtype = str(torch.get_autocast_dtype(device_type)).removeprefix("torch.")
            raise BadInput(
                f"called under torch.autocast({device_type!r}, {dtype}), which changes the dtype of operators from "
                f"outside of the model; call it outside of the autocast, with the model cast: model.to(torch.{dtype}), "
                "or enter the autocast inside the model's forward"
            )


def _mutates(graph_module: fx.GraphModule) -> bool:
    targets = {node.target for graph in graphs(graph_module) for node in graph.nodes}
    return any(isinstance(target, OpOverload) and target._schema.is_mutable for target in targets)


def _program(model: torch.nn.Module, exported: torch.export.ExportedProgram) -> Program:
    name = type(model).__name__
    bindings = []
    for position, spec in enumerate(exported.graph_signature.input_specs):
        if spec.kind not in _SOURCES:
            held = type(exported.constants.get(str(spec.target))).__name__
            what = spec.kind.name if held == "NoneType" else f"a {held} that it holds"
            raise CaptureError(
                f"{name} computes with {what} ({spec.arg.name}), not supported: graphs take tensors and numbers"
            )
        source = _SOURCES[spec.kind]
        bindings.append(Binding(source, str(position) if source is Source.INPUT else str(spec.target)))
    for out in exported.graph_signature.output_specs:
        if out.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"{name} writes into {out.target!r} ({out.kind.name.lower()}) while it runs; "
                "only models without side effects can be compiled"
            )
    modes = [n.meta["val"].fake_mode for n in exported.graph.nodes if isinstance(n.meta.get("val"), FakeTensor)]
    if not modes:
        raise CaptureError(f"{name} computes nothing with tensors")
    for node in exported.graph.nodes:
        _check_node(name, node)
    refused = bound_lengths(exported.graph, modes[0])
    if refused is not None:
        node, why = refused
        raise CaptureError(
            f"{name}: the sizes of {node.name} ({node.target}) depend on the values of a tensor: {why}\n"
            f"  at {source_line(node)}\n  a plan needs sizes: select with a mask and padding, or outside of the model"
        )
    graph_module = module_of(exported.graph)
    out_spec = exported.call_spec.out_spec
    assert out_spec is not None
    return Program(graph_module, tuple(bindings), dict(exported.constants), _plain(out_spec), modes[0])


def _check_node(model: str, node: fx.Node) -> None:
    if isinstance(node.target, HigherOrderOperator):
        what = f"{node.name} calls a graph of its own by {node.target}, which is not supported"
    elif node.op == "get_attr" and all(isinstance(user.target, HigherOrderOperator) for user in node.users):
        return  # the graph it calls; the call is told
    elif draws(node):
        raise CaptureError(
            f"{model} draws random numbers ({node.target}), which a plan may do in another order than the model\n"
            f"  at {source_line(node)}\n  call model.eval() if it is dropout, or draw outside and pass the numbers in"
        )
    elif node.op not in ("placeholder", "call_function", "output"):
        what = f"{node.op} {node.name} in the captured graph is not supported: {node.format_node()}"
    else:
        return
    raise CaptureError(f"{model}: {what}\n  at {source_line(node)}")


_PLAIN = {immutable_dict: dict, immutable_list: list}


def _plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The structure the model returns: where an output is None, torch.export tells it with containers of torch.fx."""
    if spec.is_leaf():
        return spec
    return pytree.TreeSpec(_PLAIN.get(spec.type, spec.type), spec.context, [_plain(c) for c in spec.children()])
