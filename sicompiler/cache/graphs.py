"""Graphs as JSON, and back: nodes by number, operators by name, fake tensors by layout and the storage they share.

What has no form here is `Unpackable`, and is then simply not kept.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.immutable_collections import immutable_dict, immutable_list

from sicompiler import ops
from sicompiler.capture import module_of
from sicompiler.capture.like_calls import fake_like

Json = Any


class Unpackable(Exception):
    """Something that has no form in a file; the message says what."""


class Broken(Exception):
    """A file that does not hold what it should."""


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in ("add", "floordiv", "getitem", "mul", "neg", "sub")},
    "builtins.max": max,
    "builtins.min": min,
    **{f"sicompiler.ops.{name}": getattr(ops, name) for name in ops.__all__},
}
_NAMES = {id(function): name for name, function in _FUNCTIONS.items()}
_PLAIN = (bool, int, float, str, type(None))
_KINDS: dict[str, type] = {  # constants of torch that are attributes of the module, as `repr` writes them
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
_META = ("stack_trace", "nn_module_stack")


def _target_name(target: Any) -> str:
    if isinstance(target, OpOverload):
        return str(target)
    name = _NAMES.get(id(target))
    if name is None:
        raise Unpackable(f"a call of {target!r:.80}")
    return name


def _target(name: str) -> Callable[..., Any]:
    function = _FUNCTIONS.get(name)
    if function is not None:
        return function
    parts = name.split(".")
    if len(parts) != 3:
        raise Broken(f"no operator has the name {name!r}")
    try:
        found = getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])
    except AttributeError as error:
        raise Broken(f"there is no operator {name}") from error
    if not isinstance(found, OpOverload) or any(argument.name == "filename" for argument in found._schema.arguments):
        raise Broken(f"{name} is no operator of a graph")
    return found


def pack_value(value: Any, numbers: Mapping[fx.Node, int]) -> Json:
    """An argument of a call: plain values as they are, all else as a list that begins with what it is.

    Args:
        value: the argument.
        numbers: of the nodes before.

    Raises:
        Unpackable: it has no form in JSON.
    """
    if isinstance(value, fx.Node):
        return ["node", numbers[value]]
    if type(value) in _PLAIN:
        return value
    if type(value) in (tuple, torch.Size):
        which = "tuple" if type(value) is tuple else "size"
        return [which, *(pack_value(part, numbers) for part in value)]
    if type(value) in (list, immutable_list):
        return ["list", *(pack_value(part, numbers) for part in value)]
    if type(value) in (dict, immutable_dict):
        return ["dict", *([pack_value(k, numbers), pack_value(v, numbers)] for k, v in value.items())]
    if isinstance(value, slice):
        return ["slice", *(pack_value(part, numbers) for part in (value.start, value.stop, value.step))]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return [name, str(value)]
    raise Unpackable(f"a {type(value).__qualname__} among the arguments")


def unpack_value(data: Json, nodes: list[fx.Node]) -> Any:
    """The argument that `pack_value` wrote.

    Raises:
        Broken: it is none.
    """
    if type(data) in _PLAIN:
        return data
    if not isinstance(data, list) or not data:
        raise Broken(f"{data!r:.60} is no value")
    kind, *rest = data
    if kind == "node":
        return nodes[rest[0]]
    if kind == "dict":
        return {unpack_value(k, nodes): unpack_value(v, nodes) for k, v in rest}
    if kind in _KINDS:
        found = getattr(torch, str(rest[0]).removeprefix("torch."), None)
        if isinstance(found, _KINDS[kind]):
            return found
    elif kind in _MAKERS:
        return _MAKERS[kind]([unpack_value(part, nodes) for part in rest])
    raise Broken(f"{data!r:.60} is no value")


_MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "size": torch.Size,
    "list": list,
    "slice": lambda parts: slice(*parts),
    "complex": lambda parts: complex(*parts),
    "device": lambda parts: torch.device(*parts),
}


class Packer:
    """Graphs as JSON; what they share, storages and texts, is written once.

    Attributes:
        storages: bytes of each storage of fake tensors.
        texts: source lines and stacks of modules.
    """

    def __init__(self) -> None:
        self.storages: list[int] = []
        self.texts: list[Json] = []
        self._storage_numbers: dict[int, int] = {}
        self._text_numbers: dict[Any, int] = {}

    def fake(self, tensor: torch.Tensor) -> Json:
        """A tensor by its layout."""
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise Unpackable(f"a value with layout {tensor.layout}")
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storage_numbers:
            self._storage_numbers[storage._cdata] = len(self.storages)
            self.storages.append(_storage_bytes(storage))
        return [
            self._storage_numbers[storage._cdata],
            str(tensor.dtype).removeprefix("torch."),
            str(tensor.device),
            [_whole(size) for size in tensor.shape],
            [_whole(step) for step in tensor.stride()],
            _whole(tensor.storage_offset()),
            bool(tensor.requires_grad),
        ]

    def _val(self, value: Any) -> Json:
        if isinstance(value, torch.Tensor):
            return ["fake", *self.fake(value)]
        if isinstance(value, (tuple, list)):
            return ["tuple" if isinstance(value, tuple) else "list", *map(self._val, value)]
        if type(value) in _PLAIN:
            return value
        raise Unpackable(f"a {type(value).__qualname__} among the values")

    def _text(self, text: Any) -> int:
        if text not in self._text_numbers:
            self._text_numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._text_numbers[text]

    def _meta(self, node: fx.Node) -> Json:
        found: dict[str, Json] = {}
        if "val" in node.meta:
            found["val"] = self._val(node.meta["val"])
        if node.meta.get("stack_trace"):
            found["stack_trace"] = self._text(str(node.meta["stack_trace"]))
        if node.meta.get("nn_module_stack"):
            stack = tuple((str(key), str(row[0])) for key, row in node.meta["nn_module_stack"].items())
            found["nn_module_stack"] = self._text(stack)
        return found

    def graph(self, graph_module: fx.GraphModule) -> Json:
        """A graph with the graphs it calls.

        Raises:
            Unpackable: something in it has no form in JSON.
        """
        numbers: dict[fx.Node, int] = {}
        rows, inside = [], {}
        for node in graph_module.graph.nodes:
            if node.op == "call_function":
                target = _target_name(node.target)
            elif node.op == "get_attr":
                target = str(node.target)
                below = getattr(graph_module, target, None)
                if not isinstance(below, fx.GraphModule):
                    raise Unpackable(f"the attribute {target}")
                inside[target] = self.graph(below)
            elif node.op in ("placeholder", "output"):
                target = str(node.target)
            else:
                raise Unpackable(f"a node of kind {node.op}")
            rows.append(
                [
                    node.op,
                    node.name,
                    target,
                    [pack_value(value, numbers) for value in node.args],
                    {name: pack_value(value, numbers) for name, value in node.kwargs.items()},
                    self._meta(node),
                ]
            )
            numbers[node] = len(numbers)
        return {"nodes": rows, "inside": inside}


def _storage_bytes(storage: torch.UntypedStorage) -> int:
    """Bytes of a storage, which torch keeps as a symbol behind an input that is a view of more."""
    try:
        return int(storage.nbytes())
    except GuardOnDataDependentSymNode as error:
        raise Unpackable("a size that depends on values") from error


def _whole(number: Any) -> int:
    if type(number) is not int:
        raise Unpackable("a size that depends on values")
    return number


class Unpacker:
    """The graphs that a `Packer` wrote.

    Args:
        storages: bytes of each storage of fake tensors.
        texts: source lines and stacks of modules.
        mode: of the fake tensors to be made.
    """

    def __init__(self, storages: list[int], texts: list[Json], mode: FakeTensorMode) -> None:
        self._storages = [torch.UntypedStorage(nbytes, device="meta") for nbytes in storages]
        self._stacks = [
            {str(key): (str(path), "") for key, path in text} if isinstance(text, list) else str(text) for text in texts
        ]
        self._mode = mode
        self._known: dict[str, tuple[torch.device, Mapping[str, Any]]] = {}  # by device: what a new tensor knows

    def fake(self, data: Json) -> torch.Tensor:
        """A fake tensor."""
        storage, dtype, device, size, stride, offset, requires_grad = data
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise Broken(f"there is no dtype {dtype!r}")
        meta = torch.empty(0, dtype=kind, device="meta").set_(self._storages[storage], offset, size, stride)
        if requires_grad:
            meta.requires_grad_()
        known = self._known.get(device)
        if known is not None:
            return fake_like(known[1], meta, known[0])
        made = FakeTensor(self._mode, meta, torch.device(device))
        self._known[device] = made.fake_device, dict(made.__dict__)
        return made

    def _val(self, data: Json) -> Any:
        if type(data) in _PLAIN:
            return data
        if not isinstance(data, list) or not data or data[0] not in ("fake", "tuple", "list"):
            raise Broken(f"{data!r:.60} is no value")
        if data[0] == "fake":
            return self.fake(data[1:])
        parts = [self._val(part) for part in data[1:]]
        return tuple(parts) if data[0] == "tuple" else parts

    def graph(self, data: Json) -> fx.GraphModule:
        """A graph with the graphs it calls.

        Raises:
            Broken, LookupError, TypeError, ValueError: the data are no graph.
        """
        root = torch.nn.Module()
        for name, below in data["inside"].items():
            setattr(root, name, self.graph(below))
        graph = fx.Graph()
        nodes: list[fx.Node] = []
        names = set[str]()
        for op, name, target, args, kwargs, meta in data["nodes"]:
            found = _target(target) if op == "call_function" else target
            values = tuple(unpack_value(value, nodes) for value in args)
            named = {key: unpack_value(value, nodes) for key, value in kwargs.items()}
            node = graph.create_node(op, found, values, named, name=name)
            if name in names:
                raise Broken(f"two nodes have the name {name}")
            node.name = name  # fx would call it otherwise if Python has a function of the name, as `input`
            names.add(name)
            if "val" in meta:
                node.meta["val"] = self._val(meta["val"])
            for key in _META:
                if key in meta:
                    node.meta[key] = self._stacks[meta[key]]
            nodes.append(node)
        return module_of(graph, root)
