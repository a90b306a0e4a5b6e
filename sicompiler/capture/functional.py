"""A graph that writes in place, as one that does not: `ExportedProgram.run_decompositions({})` in half of its time.

torch functionalizes a graph twice, once to find out which inputs are written into and once to record, on a copy of the
model that it makes for the purpose. Here it is run once, under the same modes, and every operator that comes out below
is a node. What torch has more to say about (inputs that are written into, sizes that depend on data, graphs inside of
the graph) is left to torch.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.export._trace as export_trace
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _special_op_to_preserve_cia
from torch._functorch._aot_autograd.functional_utils import from_fun, has_data_mutation, to_fun
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.export.graph_signature import OutputKind
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import snapshot_fake
from torch.utils import _python_dispatch as python_dispatch

from sicompiler.capture.composites import composites_kept
from sicompiler.capture.like_nodes import LikeNodes, untouched_nodes
from sicompiler.capture.program import module_of
from sicompiler.capture.rehearsal import compiling_state
from sicompiler.capture.symbols import depends_on_data, is_symbolic
from sicompiler.capture.tape import LITERALS

aten = torch.ops.aten

_SIZES = (aten.size.default, aten.stride.default, aten.storage_offset.default)
_META = ("nn_module_stack", "stack_trace")


class _LeftToTorch(Exception):
    """Something that is not done here."""


def functionalized(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program that computes the same without operators that write.

    Args:
        exported: a program of pure operators and such that write.
    """
    try:
        graph = _functional_graph(exported)
    except Exception:  # torch tells what is wrong with it
        decomposed: torch.export.ExportedProgram = exported.run_decompositions({})
        return decomposed
    result = copy.copy(exported)
    result._graph_module = module_of(graph)
    return result


def _functional_graph(exported: torch.export.ExportedProgram) -> fx.Graph:
    graph = exported.graph
    inputs = list(graph.find_nodes(op="placeholder"))
    modes = [value.fake_mode for node in inputs if isinstance(value := node.meta.get("val"), FakeTensor)]
    if not modes or not all(map(_is_plain, graph.nodes)):
        raise _LeftToTorch
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in exported.graph_signature.output_specs):
        raise _LeftToTorch
    recorder = _Recorder()
    with _as_torch_does(modes[0]), FunctionalTensorMode(export=True, _allow_token_discovery=True):
        with recorder:
            recorder.run(graph, inputs, modes[0])
        recorder.finish()
    made = recorder.graph
    names = {node.name for node in inputs}
    if any(node.name in names for node in made.nodes if node.op != "placeholder"):
        raise _LeftToTorch
    for node, old in zip(made.find_nodes(op="placeholder"), inputs, strict=True):
        node.name, node.target = old.name, old.target
        node.meta.update({key: value for key, value in old.meta.items() if key != "val"})
    made.eliminate_dead_code(lambda node: node.is_impure(impure_random=False))  # as torch has it in a trace
    return made


@contextlib.contextmanager
def _as_torch_does(mode: FakeTensorMode) -> Iterator[None]:
    """What torch has on while it functionalizes for export, with every composite operator kept that may be."""
    with (
        mode,
        composites_kept(),
        export_trace._ignore_backend_decomps(),
        compiling_state(),
        torch.no_grad(),
        enable_python_dispatcher(),
    ):
        yield


def _is_plain(node: fx.Node) -> bool:
    if is_symbolic(node):
        return False
    if isinstance(node.target, OpOverload):
        return torch.Tag.inplace_view not in node.target.tags or node.target is aten.detach_.default
    return node.target is operator.getitem or node.op in ("placeholder", "output")


def _stays(node: fx.Node) -> bool:
    """Whether an operator on memory that nothing writes into becomes the same one: it is one of a kernel, or kept."""
    target = node.target
    if not isinstance(target, OpOverload) or type(node.meta.get("val")) is not FakeTensor:
        return False
    if target.namespace != "aten" or depends_on_data(target) or target in LITERALS:
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if composite in target.py_kernels:
        return target.py_kernels[composite] is _special_op_to_preserve_cia
    return not torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), composite)


def _is_read_in_vain(node: fx.Node) -> bool:
    """Whether a node reads a number that was decided in the trace, where its value stands in the code that followed."""
    target = node.target
    return (
        not node.users and isinstance(target, OpOverload) and depends_on_data(target) and not target._schema.is_mutable
    )


def _makes_symbols(target: OpOverload, args: Any) -> bool:
    """Whether a call gives a number, or a size, that depends on data; places told by number do not."""
    if target is not aten.index.Tensor:
        return depends_on_data(target)
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class _Recorder(python_dispatch.TorchDispatchMode):
    """Makes a node of every operator below functionalization."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode_key = torch._C._TorchDispatchModeKey.PROXY
        self.graph = fx.Graph()
        self.tracer = self  # as FunctionalTensorMode looks for nodes that it makes again
        self.tensor_tracker = _Tracker()
        self._source: fx.Node | None = None
        self._names: dict[Any, str] = {}
        self._values: dict[fx.Node, Any] = {}  # of nodes of the old graph
        self._found: dict[fx.Node, Any] = {}  # the nodes that stand for them
        self._made: list[tuple[fx.Node, str | None]] = []  # for the one that is run
        self._results: list[Any] = []
        self._functional: list[torch.Tensor] = []

    @classmethod
    def is_infra_mode(cls) -> bool:
        """It has the place of torch's own."""
        return True

    def placeholder(self, node: fx.Node) -> Any:
        """The input behind a placeholder, as something that may be written into."""
        value = node.meta.get("val")
        made = self.graph.placeholder(f"input_of_{node.name}")
        if not isinstance(value, FakeTensor):
            made.meta["val"] = value
            return value
        inner = snapshot_fake(value)
        assert inner is not None
        made.meta["val"] = value
        self.tensor_tracker.track(inner, made)
        outer = to_fun(inner)
        self._functional.append(outer)
        return outer

    def run(self, graph: fx.Graph, inputs: list[fx.Node], mode: FakeTensorMode) -> None:
        """Run a graph; what is like something that was run before is not.

        Args:
            graph: which may write.
            inputs: its placeholders.
            mode: of its fake values.
        """
        self._values = {node: self.placeholder(node) for node in inputs}
        untouched, alike = untouched_nodes(graph), LikeNodes(self.graph, mode)
        for node in graph.nodes:
            self._source = node
            if node.op != "call_function" or _is_read_in_vain(node):
                continue
            like = None
            if node in untouched:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._node_of)
                like = alike.node(node.target, args, kwargs)
                done, found = (False, None) if like is None else alike.again(like, self._meta(node))
                if not done and like is not None and _stays(node):
                    alike.stays(like, node, self._name(node.target))
                    done, found = alike.again(like, self._meta(node))
                if done:
                    self._found[node] = found
                    continue
            elif node.target is operator.getitem and node.args[0] in self._found:
                self._found[node] = self._found[node.args[0]][node.args[1]]
                continue
            self._made.clear()
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value_of)
            self._values[node] = node.target(*args, **kwargs)
            if like is not None:
                alike.learn(like, self._made, self._node_of(node))
        (output,) = graph.find_nodes(op="output")
        self._results = [from_fun(value) for value in fx.node.map_arg(output.args[0], self._value_of)]

    def _value_of(self, node: fx.Node) -> Any:
        """What a node of the old graph gives, as something that may be written into."""
        if node not in self._values:
            self._values[node] = pytree.tree_map(self._wrapped, self._found[node])
        return self._values[node]

    def _wrapped(self, made: Any) -> Any:
        if not isinstance(made, fx.Node):
            return made
        inner = snapshot_fake(made.meta["val"])
        assert inner is not None
        self.tensor_tracker.track(inner, made)
        return to_fun(inner)

    def _node_of(self, node: fx.Node) -> Any:
        """The nodes of the new graph that stand for one of the old graph, on memory that nothing writes into."""
        if node not in self._found:
            found = pytree.tree_map_only(torch.Tensor, lambda t: self._operand(from_fun(t)), self._values[node])
            self._found[node] = found
        return self._found[node]

    @staticmethod
    def _meta(source: fx.Node) -> dict[str, Any]:
        return {key: source.meta[key] for key in _META if key in source.meta}

    def finish(self) -> None:
        """Give the graph its results."""
        if any(map(has_data_mutation, self._functional)):
            raise _LeftToTorch
        nodes = tuple(self._operand(result) for result in self._results)
        self.graph.output(nodes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and record it."""
        kwargs = kwargs or {}
        if func == torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not isinstance(func, OpOverload) or _makes_symbols(func, args):
            raise _LeftToTorch  # before it runs: torch does not forget a symbol that it has made
        if func not in _SIZES and python_dispatch.autograd_would_have_decomposed(
            func, pytree.tree_leaves((args, kwargs))
        ):
            with self:
                result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        operands = tuple(self._operand(arg) for arg in args)
        named = {key: self._operand(arg) for key, arg in kwargs.items()}
        node = self._node(func, operands, named, self._name(func))
        result = func(*args, **kwargs)
        if func is aten.copy.default and result.storage_offset():
            result = func(*args, **kwargs)  # only the first of its kind has the offset of what it replaces
        self._bind(node, result)
        return result

    def _name(self, func: Any) -> str:
        """How nodes of an operator are called."""
        if func not in self._names:
            self._names[func] = self.graph._target_to_str(func.overloadpacket.__name__)
        return self._names[func]

    def _node(self, target: Callable[..., Any], args: Any, kwargs: Any, name: str | None = None) -> fx.Node:
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        self._made.append((node, name))
        assert self._source is not None
        again = fx_traceback.get_current_replay_node()
        for key in _META:
            if key in self._source.meta:
                node.meta[key] = copy.copy(self._source.meta[key])
        if again is not None and "stack_trace" in again.meta:
            node.meta["stack_trace"] = again.meta["stack_trace"]
        return node

    def _bind(self, node: fx.Node, value: Any) -> None:
        node.meta["val"] = pytree.tree_map_only(torch.Tensor, snapshot_fake, value)
        if isinstance(value, (tuple, list)):
            for position, entry in enumerate(value):
                self._bind(self._node(operator.getitem, (node, position), {}), entry)
        elif isinstance(value, FakeTensor):
            self.tensor_tracker.track(value, node)
        elif value is not None:
            raise _LeftToTorch

    def _operand(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.tensor_tracker[value].proxy.node
        if isinstance(value, (list, tuple)):
            return type(value)([self._operand(entry) for entry in value])
        return value


class _Slot:
    def __init__(self, node: fx.Node) -> None:
        self.node, self.proxy = node, self


class _Tracker:
    """Which node gave a tensor."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[torch.Tensor, _Slot]] = {}  # by id of a tensor, which is kept

    def track(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._slots[id(tensor)] = tensor, _Slot(node)

    def __getitem__(self, tensor: torch.Tensor) -> _Slot:
        return self._slots[id(tensor)][1]
