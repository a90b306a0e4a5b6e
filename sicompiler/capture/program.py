"""A captured model: the graph, what each of its placeholders stands for, and a fingerprint to tell graphs apart."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _LazyGraphModule

from sicompiler.capture.live_tensors import tensors_now
from sicompiler.capture.quantised import storage_bytes
from sicompiler.capture.results import close_results, has_opened

if TYPE_CHECKING:
    from sicompiler.capture.decisions import Decided


class Source(StrEnum):
    """Where the value of a placeholder comes from."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    INPUT = "input"


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
        decided: what the model decided by values of tensors when it was captured, in order.
    """

    graph_module: fx.GraphModule
    bindings: tuple[Binding, ...]
    constants: Mapping[str, torch.Tensor]
    out_spec: pytree.TreeSpec
    fake_mode: FakeTensorMode
    decided: tuple[Decided, ...] = ()

    def with_graph(self, graph_module: fx.GraphModule) -> Program:
        """The program with another graph behind the same placeholders."""
        return replace(self, graph_module=graph_module)

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
        return self.arguments_of(tensors_now(model), inputs)

    def arguments_of(self, tensors: Mapping[str, torch.Tensor], inputs: Sequence[Any]) -> list[Any]:
        """What to call the graph with.

        Args:
            tensors: parameters and buffers by name.
            inputs: flattened by `flatten_inputs`.
        """
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

    def results(self, flat: Sequence[Any]) -> Any:
        """What the model would return, of the flat outputs of a run."""
        result = pytree.tree_unflatten(list(flat), self.out_spec)
        return close_results(result) if self._opened else result

    @functools.cached_property
    def _opened(self) -> bool:
        """Whether what the model returns was taken apart, somewhere in it."""
        return has_opened(self.out_spec)


def module_of(graph: fx.Graph, root: torch.nn.Module | None = None) -> fx.GraphModule:
    """A module of a graph, compiled when it is run or read: most graphs on the way to a plan never are.

    Args:
        graph: the graph.
        root: has the modules that the graph reads by name, if it reads any.
    """
    return _LazyGraphModule(root or torch.nn.Module(), graph)


def compile_now(graph_module: fx.GraphModule) -> None:
    """Compile a graph that is going to be run, and the bodies of its loops."""
    for module in graph_module.modules():  # outer ones first: compiled, they set back those within
        if isinstance(module, fx.GraphModule):
            _LazyGraphModule.force_recompile(module)


def flatten_inputs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten a call's inputs; keyword arguments in the order of their names."""
    names = sorted(kwargs)
    leaves = [*args, *(kwargs[name] for name in names)]
    if _LEAVES.issuperset(map(type, leaves)):  # as in most calls: torch's way takes ten times as long
        return leaves, _spec_of(len(args), tuple(names))
    return pytree.tree_flatten((tuple(args), {name: kwargs[name] for name in names}))


_LEAVES = frozenset({torch.Tensor, int, float, bool, str, type(None), torch.dtype, torch.device})


@functools.lru_cache(maxsize=2**8)
def _spec_of(count: int, names: tuple[str, ...]) -> pytree.TreeSpec:
    """The structure of a call whose arguments are all leaves.

    Args:
        count: of positional ones.
        names: of the others, in order.
    """
    return pytree.tree_structure(((None,) * count, dict.fromkeys(names)))


def same_inputs(leaves: Sequence[Any]) -> tuple[int, ...]:
    """Which inputs are one and the same tensor, as models ask (`if key is query`): the first position of each.

    Args:
        leaves: flattened by `flatten_inputs`.

    Returns:
        Nothing, where no tensor is there twice.
    """
    numbers = [id(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return tuple(map(numbers.index, numbers)) if len(set(numbers)) < len(numbers) else ()


def weights_bytes(model: torch.nn.Module, device_type: str | None = None) -> int:
    """Bytes that the parameters and buffers of a model take on a device, shared storages once.

    Args:
        model: wherever it lies now.
        device_type: whose allocator rounds them up; None: that of the device it is on.
    """
    return sum(storage_bytes(tensors_now(model).values(), device_type).values())


def fingerprint(graph: fx.Graph) -> str:
    """A short hash of a graph: operators, arguments, shapes, strides, dtypes and devices of every value.

    Node names do not count, so the same model captured twice has the same fingerprint. Nor does which device most
    values are on: a plan for another kind of device is made from a graph that is captured here.
    """
    number = {node: index for index, node in enumerate(graph.nodes)}
    tensors = {
        node: [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor)] for node in number
    }
    devices = Counter(t.device for found in tensors.values() for t in found)
    home = devices.most_common(1)[0][0] if devices else None

    def show(argument: Any) -> str:
        return repr(fx.node.map_arg(argument, lambda n: f"%{number[n]}")).replace(repr(home), "home")

    digest = hashlib.sha256()
    for node in graph.nodes:
        facts = [
            (tuple(t.shape), t.stride(), str(t.dtype), "home" if t.device == home else str(t.device))
            for t in tensors[node]
        ]
        target = str(node.target) if node.op == "call_function" else ""
        digest.update(f"{node.op} {target} {show(node.args)} {show(node.kwargs)} {facts}\n".encode())
    return digest.hexdigest()[:16]


def structure(graph: fx.Graph) -> str:
    """A short hash of the operators of a graph and who reads whom, without sizes: the same at every input shape."""
    number = {node: index for index, node in enumerate(graph.nodes)}
    digest = hashlib.sha256()
    for node in graph.nodes:
        digest.update(f"{node.op} {node.target} {[number[n] for n in node.all_input_nodes]}\n".encode())
    return digest.hexdigest()[:16]
