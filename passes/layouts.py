"""Layouts as kernels choose them: fake values whose strides the real kernels would not give are put right."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from sicompiler.capture import Program
from sicompiler.facts.calls import bind
from sicompiler.facts.strides import Strided, format_strides, like_strides, pointwise_strides, view_strides
from sicompiler.facts.workspace.onednn import takes
from sicompiler.passes.edit import Replacements
from sicompiler.passes.layout_rows import COMPOSITE, LIKE, NOT_ITERATED, ROWS, STRIDES, VIEWS, strided
from sicompiler.regions.view import CLONES_STORAGE

aten = torch.ops.aten


def real_layouts(program: Program) -> None:
    """Give fake values the strides that the CPU's kernels give the real ones.

    Before: `p = pad(x, ..., "reflect")`, of a channels-last `x`, row-major by its fake tensor
    After:  the same call, channels-last, and what reads it evaluated again
    Exact because no call changes: only what is known of their results. Fake tensors differ from kernels where strides
    of a batch of one, or a permuted input, leave the memory format open. A convolution further on then chooses another
    algorithm, and other memory, than was planned. Refuses other devices, whose kernels were not compared.
    """
    replacements = Replacements(program.graph_module.graph, program.fake_mode)
    for node in program.graph_module.graph.nodes:
        replacements.follow(node)
        result = node.meta.get("val")
        made = as_made(node, program.fake_mode)
        if made is not result:
            replacements.changed(node, made)


def as_made(node: fx.Node, mode: FakeTensorMode) -> Any:
    """A node's fake value, with the strides that the kernel gives it; the same object if it has them.

    Of several tensors the first is looked at; those of its shape (the indices of a sort) lie as it does.

    Args:
        node: a call with its fake value in `meta["val"]`.
        mode: the fake mode of it.
    """
    result = node.meta.get("val")
    value, *rest = result if isinstance(result, (list, tuple)) and result else (result,)
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or not value.numel():
        return result
    make = _maker(node, value)
    if make is None:
        return result
    with mode:
        new = make()
        return (new, *(_laid_like(new, other) for other in rest)) if rest else new


def _laid_like(new: torch.Tensor, other: Any) -> Any:
    if not isinstance(other, torch.Tensor) or other.shape != new.shape:
        return other
    return torch.empty_strided(other.shape, new.stride(), dtype=other.dtype, device=other.device)


def _maker(node: fx.Node, value: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """What makes a fake value as the kernel would make it; None where it is so."""
    target = node.target
    if target in CLONES_STORAGE:
        return _with_storage(node, value)
    if target is aten.conv_transpose3d.input and keeps_input_size(node):
        return _made_shorter(node, value)
    stride = _real_strides(node, value)
    if stride is None or stride == tuple(value.stride()):
        return None
    if target in VIEWS:
        return partial(value.as_strided, value.shape, stride)
    return partial(torch.empty_strided, value.shape, stride, dtype=value.dtype, device=value.device)


def _with_storage(node: fx.Node, value: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """`clone_preserve_strides`: all that lies behind the operand, unless some entries of it are shown several times."""
    source: torch.Tensor = node.args[0].meta["val"]  # type: ignore[union-attr]
    nbytes = source.untyped_storage().nbytes()
    expanded = any(size > 1 and stride == 0 for size, stride in zip(source.shape, source.stride(), strict=True))
    if expanded or int(nbytes) == int(value.untyped_storage().nbytes()):
        return None

    def make() -> torch.Tensor:
        behind = torch.empty(int(nbytes) // value.element_size(), dtype=value.dtype, device=value.device)
        return behind.as_strided(source.shape, source.stride(), source.storage_offset())

    return make


def keeps_input_size(node: fx.Node) -> bool:
    """Whether a result holds as much memory as the larger input it began as: `slow_conv_transpose3d` on the CPU."""
    value = node.meta["val"]
    if node.target is not aten.conv_transpose3d.input or value.device.type != "cpu" or takes(value.dtype):
        return False
    arguments = _bound(node)
    return bool(arguments["groups"] == 1 and arguments["input"].numel() > value.numel())


def _made_shorter(node: fx.Node, value: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    entries = _bound(node)["input"].numel()
    if value.is_contiguous() and value.untyped_storage().nbytes() == entries * value.element_size():
        return None

    def make() -> torch.Tensor:
        return torch.empty(entries, dtype=value.dtype, device=value.device)[: value.numel()].view(value.shape)

    return make


def _real_strides(node: fx.Node, value: torch.Tensor) -> tuple[int, ...] | None:
    """Strides of a call's result by the kernel; None where the fake value is to be believed."""
    target: Any = node.target
    if target in VIEWS:
        source = strided(node.args[0].meta["val"])  # type: ignore[union-attr]
        unchanged = target is aten.flatten.using_ints and source[0] == tuple(value.shape)  # gives its operand back
        return source[1] if unchanged else view_strides(source, list(value.shape))
    row = ROWS.get(target)
    if row is not None:
        channels = row(_bound(node))
        return None if channels is None else format_strides(tuple(value.shape), channels)
    if target in STRIDES:
        return STRIDES[target](_bound(node))
    if 1 not in value.shape or not isinstance(target, OpOverload):
        return None
    if target in LIKE:
        return _like(_bound(node))
    if target in COMPOSITE:
        return _on_meta(node)
    if torch.Tag.pointwise in target.tags and target not in NOT_ITERATED:
        return _pointwise(_bound(node))
    return None


def _like(arguments: dict[str, Any]) -> tuple[int, ...] | None:
    if arguments.get("memory_format") not in (None, torch.preserve_format):
        return None
    return like_strides(strided(arguments["self"]))


def _pointwise(arguments: dict[str, Any]) -> tuple[int, ...] | None:
    """None where operands are converted first: the copies may lie otherwise."""
    operands = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    converted = [value for name, value in arguments.items() if isinstance(value, torch.Tensor) and name != "condition"]
    if len({tensor.dtype for tensor in converted if tensor.dim()}) != 1:
        return None
    numbers: list[Strided] = [((), ())] if isinstance(arguments.get("other"), (int, float, complex)) else []
    return _pointwise_strides(*map(strided, operands), *numbers)


@lru_cache(maxsize=4096)
def _pointwise_strides(*operands: Strided) -> tuple[int, ...]:
    return pointwise_strides(operands)


def _on_meta(node: fx.Node) -> tuple[int, ...]:
    def without_memory(source: fx.Node) -> torch.Tensor:
        fake: torch.Tensor = source.meta["val"]
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device="meta")

    with _disable_current_modes(), torch.no_grad():
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), without_memory)
        assert callable(node.target)
        return tuple(node.target(*args, **kwargs).stride())


def _bound(node: fx.Node) -> dict[str, Any]:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    target: Any = node.target
    return bind(target, args, kwargs)
