"""Fake values of calls: evaluated by torch once for all calls that are alike, made from their layouts for the others.

Under a fake mode a call takes torch half a millisecond, also where it has seen one like it. A loop's body, one slice of
an outer loop and what follows a changed layout are thousands of calls, of which a few hundred differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_PLAIN = frozenset(
    {*(int, bool, float, str, type(None)), *(torch.dtype, torch.device, torch.layout, torch.memory_format)}
)


class _MoreThanLayout(Exception):
    """Something of a call is more than its layout: a symbol, a constant, a tensor of another mode."""


@dataclass(frozen=True)
class _Result:
    """How one result of a call lies.

    Attributes:
        layout: size, strides, offset, dtype and device.
        shown: which of the call's tensors it is a view of; None where it has memory of its own.
        own: number of that memory among those of the call.
    """

    layout: tuple[Any, ...]
    shown: int | None
    own: int


@dataclass(frozen=True)
class _Results:
    """What a call gives.

    Attributes:
        results: its tensors.
        kind: None for a single tensor, else the class of the list of them.
        nbytes: of the memories that it makes.
    """

    results: tuple[_Result, ...]
    kind: type[Any] | None
    nbytes: tuple[int, ...]


_known: WeakKeyDictionary[FakeTensorMode, dict[Any, _Results]] = WeakKeyDictionary()


def fake_result(
    target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], mode: FakeTensorMode
) -> Any:
    """The fake value that a call gives.

    Args:
        target: what is called.
        args: with fake tensors of the mode.
        kwargs: by name.
        mode: evaluates calls that are not known.
    """
    tensors: list[torch.Tensor] = []
    try:
        key = _key(target, args, kwargs, mode, tensors)
    except _MoreThanLayout:
        return _evaluated(target, args, kwargs, mode)
    known = _known.setdefault(mode, {})
    results = known.get(key)
    if results is not None:
        return _made(results, tensors, mode)
    value = _evaluated(target, args, kwargs, mode)
    with contextlib.suppress(_MoreThanLayout):
        known[key] = _results(value, tensors, mode)
    return value


def _evaluated(target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], mode: FakeTensorMode) -> Any:
    with mode, torch.no_grad():
        return target(*args, **kwargs)


def _key(
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    mode: FakeTensorMode,
    tensors: list[torch.Tensor],
) -> Any:
    """What the layouts of a call's results depend on; collects its tensors."""
    others = torch._C._len_torch_dispatch_stack() or torch._C._is_any_autocast_enabled()  # modes that have a say too
    if others or not isinstance(target, OpOverload) or target._schema.is_mutable:
        raise _MoreThanLayout

    def shown(argument: Any) -> Any:
        kind = type(argument)
        if kind is FakeTensor:
            tensors.append(argument)
            return _layout(argument, mode)
        if kind in _PLAIN:
            return kind, argument
        if isinstance(argument, (tuple, list)):
            return tuple([shown(item) for item in argument])
        raise _MoreThanLayout

    given = (tuple([shown(value) for value in args]), tuple([(name, shown(value)) for name, value in kwargs.items()]))
    first: dict[int, int] = {}
    same = tuple([first.setdefault(t.untyped_storage()._cdata, i) for i, t in enumerate(tensors)])
    return target, given, same, torch.get_default_dtype()


def _layout(tensor: torch.Tensor, mode: FakeTensorMode) -> tuple[Any, ...]:
    if not isinstance(tensor, FakeTensor) or tensor.fake_mode is not mode or tensor.constant is not None:
        raise _MoreThanLayout
    nbytes = int(tensor.untyped_storage().nbytes())  # a symbol behind an input that is a view of more
    size, stride, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    numbers = (*size, *stride, offset)
    if tensor.layout is not torch.strided or tensor.is_conj() or any(type(number) is not int for number in numbers):
        raise _MoreThanLayout
    return size, stride, offset, tensor.dtype, tensor.device, nbytes


def _results(value: Any, tensors: Sequence[torch.Tensor], mode: FakeTensorMode) -> _Results:
    kind = type(value) if type(value) in (tuple, list) else None
    shown: dict[int, int] = {}
    for index, tensor in enumerate(tensors):
        shown.setdefault(tensor.untyped_storage()._cdata, index)
    own: dict[int, int] = {}
    found: list[_Result] = []
    sizes: list[int] = []
    for tensor in value if kind is not None else (value,):
        if not isinstance(tensor, torch.Tensor) or tensor.requires_grad:
            raise _MoreThanLayout
        *layout, nbytes = _layout(tensor, mode)
        storage = tensor.untyped_storage()._cdata
        if storage not in shown and own.setdefault(storage, len(sizes)) == len(sizes):
            sizes.append(nbytes)
        found.append(_Result(tuple(layout), shown.get(storage), own.get(storage, -1)))
    return _Results(tuple(found), kind, tuple(sizes))


def _made(known: _Results, tensors: Sequence[torch.Tensor], mode: FakeTensorMode) -> Any:
    own = [torch.UntypedStorage(nbytes, device="meta") for nbytes in known.nbytes]
    found = []
    for result in known.results:
        size, stride, offset, dtype, device = result.layout
        storage = own[result.own] if result.shown is None else tensors[result.shown].untyped_storage()
        meta = torch.empty(0, dtype=dtype, device="meta").set_(storage, offset, size, stride)
        found.append(FakeTensor(mode, meta, device))
    return found[0] if known.kind is None else known.kind(found)
