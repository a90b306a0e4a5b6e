"""A trace without what nobody reads of it: `torch.export` in half of its time, with the same graph.

For every operator `torch.export` describes the whole stack of Python, the layout once more, the function of torch it
came from; and it writes out the graph as Python, and compiles that, seven times before anybody could run it. Of all
this we read one line of source a node. So for the time of a trace

- dropout that drops nothing is no operator: it gives its operand, as in eager mode, where torch's stand-in copies it;
- most operators, those on tracked tensors of known sizes, are recorded in a shorter way (`_recorded`);
- a `GraphModule` is compiled when it is run;
- symbols of sizes are searched for in every node only if there are any;
- nobody counts which function of torch was called how often.

What torch has under another name in another version is left as it is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
import torch.export._trace as export_trace
import torch.fx.experimental.proxy_tensor as proxies
import torch.utils._pytree as pytree
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import traceback as fx_traceback

from sicompiler.capture.like_operators import LikeOperators
from sicompiler.capture.reasons import UNKNOWN_LINE, line_being_run, place_being_run
from sicompiler.capture.rehearsal import is_recording
from sicompiler.capture.symbols import depends_on_data
from sicompiler.capture.tape import LITERALS
from sicompiler.errors import CaptureError

aten = torch.ops.aten

_OTHERS = {aten.is_nonzero.default, aten.detach_.default}
_ATOMS = frozenset({int, float, bool, complex, str, type(None)})
_KINDS = frozenset({torch.dtype, torch.device, torch.layout, torch.memory_format})


_DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}


class _TorchOperand(Exception):
    """An operand that is recorded in torch's way."""


@contextlib.contextmanager
def lean_trace() -> Iterator[None]:
    """Have `torch.export` leave out what nobody reads, in this thread."""
    with contextlib.ExitStack() as stack:
        for owner, name, make in _ROWS:
            if hasattr(owner, name):
                stack.enter_context(_replaced(owner, name, make))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    before = getattr(owner, name)
    mine, instead = threading.get_ident(), make(before)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (instead if threading.get_ident() == mine else before)(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _compiled_when_run(recompile: Callable[[fx.GraphModule], Any]) -> Callable[[fx.GraphModule], Any]:
    """`GraphModule.recompile` that waits until the module is run, but for modules that the model's own code makes."""

    def forward(self: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        recompile(self)
        return type(self).forward(self, *args, **kwargs)

    def later(self: fx.GraphModule) -> Any:
        # torch reads names of arguments from the signature; a model, whose functions are recorded, may read its code
        if hasattr(self.graph._codegen, "pytree_info") or is_recording():
            return recompile(self)
        type(self).forward = forward
        return None

    return later


def _only_if_any(replace_bindings: Callable[[fx.GraphModule], None]) -> Callable[[fx.GraphModule], None]:
    """The search for sizes that depend on data, left out where there are none."""

    def replaced(graph_module: fx.GraphModule) -> None:
        nodes = graph_module.graph.nodes
        mode = next((value.fake_mode for node in nodes if isinstance(value := node.meta.get("val"), FakeTensor)), None)
        if mode is None or mode.shape_env is None or mode.shape_env.var_to_range:
            replace_bindings(graph_module)

    return replaced


def _recorded(proxy_call: Callable[..., Any]) -> Callable[..., Any]:
    """How an operator becomes a node, before the dispatcher takes it apart."""
    default = torch.get_default_dtype()
    plain: dict[Any, str | None] = {}
    modules: dict[Any, dict[str, tuple[str, str]]] = {}
    alike = LikeOperators()

    def call(mode: Any, func: Any, pre_dispatch: bool, args: Any, kwargs: Any) -> Any:
        if func in _DROPOUTS and _drops_nothing(*args, **kwargs):
            return args[0]
        if torch.get_default_dtype() is not default:
            _check_dtype(func, args, kwargs)
        if func not in plain:
            plain[func] = _name_of(func, mode)
        name = plain[func]
        if name is None or not pre_dispatch or fx_traceback.has_preserved_node_meta():
            return proxy_call(mode, func, pre_dispatch, args, kwargs)
        tracer = mode.tracer
        try:
            operands = [_operand(arg, tracer.tensor_tracker) for arg in args]
            named = {key: _operand(arg, tracer.tensor_tracker) for key, arg in kwargs.items()}
        except _TorchOperand:
            return proxy_call(mode, func, pre_dispatch, args, kwargs)
        node = tracer.graph.create_node("call_function", func, tuple(operands), named, name)
        scopes = tuple(tracer.module_stack.items())
        if scopes not in modules:
            modules[scopes] = {key: (path, _class_name(kind)) for key, (path, kind) in scopes}
        node.meta["nn_module_stack"] = dict(modules[scopes])
        node.meta["stack_trace"] = _line()
        proxy = tracer.proxy(node)
        result, known = alike.run(func, args, kwargs)
        if type(result) is FakeTensor and not result._has_symbolic_sizes_strides:
            node.meta["val"] = proxies.snapshot_fake(result) if known is None else known.beside(result)
            proxies.set_proxy_slot(result, tracer, proxies._ProxyTensor(proxy, None))
        else:
            proxies.track_tensor_tree(result, proxy, constant=None, tracer=tracer)
        return result

    return call


def _check_dtype(func: Any, args: Any, kwargs: Any) -> None:
    """Refuse an operator that takes the default dtype where the model has set one of its own: no graph says which.

    Raises:
        CaptureError: names the operator and the line.
    """
    if isinstance(func, OpOverload) and (func._schema.is_mutable or depends_on_data(func)):
        return  # what writes has a dtype to write into, and run here it would write twice into constants
    values = pytree.tree_leaves((args, kwargs))
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    given = any(isinstance(value, torch.dtype) for value in values)
    if given or not all(map(_is_integral, tensors)):
        return
    made = [value for value in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(value, torch.Tensor)]
    if not all(map(_is_integral, made)):
        dtype = str(torch.get_default_dtype()).removeprefix("torch.")
        raise CaptureError(
            f"{func} takes the default dtype, which the model has set to {dtype} while it runs\n"
            f"  at {line_being_run()}\n  a graph runs with its caller's default dtype: write dtype=torch.{dtype} there"
        )


def _is_integral(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _drops_nothing(_: torch.Tensor, p: float, train: bool) -> bool:
    return not train or p == 0


def _name_of(func: Any, mode: Any) -> str | None:
    """The name of the nodes of an operator; None for those that are recorded in torch's way."""
    if not isinstance(func, OpOverload) or func.namespace != "aten" or func in (LITERALS | _OTHERS):
        return None
    if func in _decompositions(mode) or getattr(mode, "emulate_precision_casts", False):
        return None
    if depends_on_data(func):
        return None
    return str(mode.tracer.graph._target_to_str(func.overloadpacket.__name__))


def _decompositions(mode: Any) -> Container[Any]:
    """The operators that torch takes apart; torch 2.11 holds them in its module, not in the mode."""
    in_module = getattr(proxies, "CURRENT_DECOMPOSITION_TABLE", ())
    found: Container[Any] = getattr(mode, "decomposition_table", in_module)
    return found


def _operand(value: Any, tracker: Any) -> Any:
    if type(value) is FakeTensor:
        slot = tracker.get(value)
        if slot is None or slot.constant is not None or value._has_symbolic_sizes_strides:
            raise _TorchOperand
        return slot.proxy.node
    if type(value) in _ATOMS or type(value) in _KINDS:
        return value
    if type(value) in (list, tuple, torch.Size):
        return type(value)([_operand(each, tracker) for each in value])
    raise _TorchOperand


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else kind


def _line() -> str:
    """The user's line that is being run, as a stack of Python prints it."""
    file, number, function = place_being_run() or ("", "", UNKNOWN_LINE)
    return f'File "{file}", line {number}, in {function}'


_ROWS: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (fx.GraphModule, "recompile", _compiled_when_run),
    (export_trace, "_replace_unbacked_bindings", _only_if_any),
    (proxies, "proxy_call", _recorded),
    (proxies, "TorchFunctionMetadataMode", lambda _: contextlib.nullcontext),
)
