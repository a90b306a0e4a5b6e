"""Calls of torch's functions whose memory is known from an earlier one like it.

A model calls the same few functions with tensors of the same layouts over and over. What such a call allocates, for how
long, and what it gives follow from its arguments and from torch's own state alone; so the first call of a kind runs
operator by operator, and the next one takes from it how much is held meanwhile, and gives tensors of the same layouts.
How long those live is up to the model's code, as ever.

Whatever else may have a say (a function of others, an autocast, gradients, real tensors, numbers that a fake tensor
knows, operands whose layout is changed in place) is run every time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import _get_current_function_mode_stack
from torch.utils._mode_utils import no_dispatch

from sicompiler.capture.functions import Unlike, is_torchs, key_of


@dataclass(frozen=True)
class _Made:
    """One tensor that a call gives.

    Attributes:
        operand: the operand that it is, or whose memory it shows; None where the call has made its memory.
        is_operand: whether it is that operand itself.
        storage: the first of the results that lies in the same memory.
        nbytes: of that memory.
        size, stride, offset, dtype, device: its layout.
        attributes: all else that its class knows of a new one.
    """

    operand: int | None
    is_operand: bool
    storage: int
    nbytes: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Footprint:
    """What a call takes and gives.

    Attributes:
        peak_bytes: the most it holds beyond what was there before.
        results: the tensors it gives; None for a None among them.
        kind: the container they come in; None for one tensor.
    """

    peak_bytes: int
    results: tuple[_Made | None, ...]
    kind: type | None


@dataclass(frozen=True)
class _Call:
    """A call that may be told from an earlier one.

    Attributes:
        key: equal for no other kind of call.
        operands: its tensors, in order; one that is given twice is there twice.
    """

    key: Any
    operands: tuple[FakeTensor, ...]


class Footprints:
    """What calls of torch's functions take, by what tells them apart; made where no mode of the model's own is on.

    Args:
        mode: of the fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._modes, self._operator_modes = _get_current_function_mode_stack(), torch._C._len_torch_dispatch_stack()
        self._known: dict[Any, Footprint | None] = {}
        self._others: set[Any] = set()  # functions that give no tensors, or are not torch's

    def call(self, func: Any, args: Any, kwargs: Any) -> _Call | None:
        """A call that what is known may tell of; None for one that has to run."""
        if func in self._others or not self._is_plain_state():
            return None
        operands: list[FakeTensor] = []
        with torch._C.DisableTorchFunction():
            try:
                layouts = self._layouts((args, kwargs), operands)
            except Unlike:
                return None
        if not operands:
            return None
        return _Call((func, torch.get_default_dtype(), *[asked() for asked in _KERNELS], layouts), tuple(operands))

    def _is_plain_state(self) -> bool:
        """Whether nothing but its arguments has a say in what a function does."""
        return not (
            torch.is_grad_enabled()  # results hold operands
            or torch.is_inference_mode_enabled()
            or torch._C._is_any_autocast_enabled()
            or torch._C._functorch.peek_interpreter_stack() is not None
            or torch._C._len_torch_dispatch_stack() != self._operator_modes
            or _get_current_function_mode_stack() != self._modes
        )

    def _layouts(self, values: Any, operands: list[FakeTensor]) -> Any:
        """Values as something to compare, their tensors by layout, and by which of them are or share the same."""
        first: dict[int, int] = {}

        def layout(tensor: torch.Tensor) -> Any:
            if type(tensor) is not FakeTensor or tensor.fake_mode is not self._mode or not _is_plain(tensor):
                raise Unlike("a tensor with more than a layout")
            operands.append(tensor)
            place = len(operands)
            return (
                first.setdefault(id(tensor), place),
                first.setdefault(-tensor.untyped_storage()._cdata, place),
                tensor.shape,
                tensor.stride(),
                tensor.storage_offset(),
                tensor.dtype,
                tensor.fake_device,
                tensor.requires_grad,
            )

        return key_of(values, layout)

    def has_met(self, call: _Call) -> bool:
        """Whether there was a call of the kind before."""
        return call.key in self._known

    def known(self, call: _Call) -> Footprint | None:
        """What an earlier call of the kind took; None where there was none, or it can't be said."""
        return self._known.get(call.key)

    def learn(self, call: _Call, args: Any, kwargs: Any, result: Any, peak_bytes: int, before: Collection[int]) -> None:
        """Keep what a call took.

        Args:
            call: which has run.
            args: its positional arguments.
            kwargs: its keyword arguments.
            result: what it gave.
            peak_bytes: the most it held beyond what was there before.
            before: the storages that were there.
        """
        self._known[call.key] = None
        func, *_, layouts = call.key
        with torch._C.DisableTorchFunction():
            if not _is_pure(func) or not _has_tensors(result):
                self._others.add(func)
                return
            with contextlib.suppress(Unlike):
                if self._layouts((args, kwargs), []) == layouts:
                    self._known[call.key] = _footprint(result, call.operands, peak_bytes, before)

    def results(
        self, footprint: Footprint, operands: Sequence[FakeTensor], note: Callable[[torch.Tensor], None]
    ) -> Any:
        """What a call gives that is not run.

        Args:
            footprint: of its kind.
            operands: its tensors.
            note: told of every tensor with memory of its own.
        """
        made: list[torch.Tensor | None] = []
        with torch._C.DisableTorchFunction(), no_dispatch():
            for place, one in enumerate(footprint.results):
                if one is None:
                    made.append(None)
                elif one.operand is not None:
                    operand = operands[one.operand]
                    made.append(operand if one.is_operand else self._tensor(one, operand.untyped_storage()))
                elif one.storage < place:
                    beside = made[one.storage]
                    assert beside is not None
                    made.append(self._tensor(one, beside.untyped_storage()))
                else:
                    tensor = self._tensor(one, None)
                    note(tensor)
                    made.append(tensor)
        return made[0] if footprint.kind is None else footprint.kind(made)

    def _tensor(self, one: _Made, storage: torch.UntypedStorage | None) -> FakeTensor:
        """A fake tensor, without the checks of its class, which take three quarters of the time."""
        meta = torch.empty_strided(one.size, one.stride, dtype=one.dtype, device="meta")
        if storage is None and (one.offset or one.nbytes != meta.untyped_storage().nbytes()):
            storage = torch.UntypedStorage(one.nbytes, device="meta")
        if storage is not None:
            meta.set_(storage, one.offset, one.size, one.stride)
        made: FakeTensor = torch.Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=one.device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.__dict__.update(one.attributes)
        return made


# What torch is told of which kernel to take for attention.
_KERNELS: tuple[Callable[[], bool], ...] = tuple(
    getattr(torch._C, name)
    for name in (
        "_get_flash_sdp_enabled",
        "_get_mem_efficient_sdp_enabled",
        "_get_math_sdp_enabled",
        "_get_cudnn_sdp_enabled",
    )
    if hasattr(torch._C, name)
)


def _is_pure(func: Any) -> bool:
    """Whether a function is torch's own."""
    if isinstance(func, OpOverload | OpOverloadPacket):
        overload = func if isinstance(func, OpOverload) else getattr(func, func.overloads()[0])
        return bool(overload.namespace == "aten")
    return is_torchs(func)


def _is_plain(tensor: FakeTensor) -> bool:
    """Whether there is no more to a fake tensor than its layout."""
    return (
        tensor.constant is None
        and tensor.real_tensor is None
        and not tensor._has_symbolic_sizes_strides
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _has_tensors(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return True
    return type(result) in (tuple, list) and any(isinstance(leaf, torch.Tensor) for leaf in result)


def _footprint(
    result: Any, operands: Sequence[FakeTensor], peak_bytes: int, before: Collection[int]
) -> Footprint | None:
    """What a call took; None where its results are more than layouts, or come from elsewhere.

    Args:
        result: of the call.
        operands: its tensors.
        peak_bytes: the most it held beyond what was there before.
        before: the storages that were there.
    """
    leaves = [result] if isinstance(result, torch.Tensor) else result
    theirs = {tensor.untyped_storage()._cdata: place for place, tensor in reversed([*enumerate(operands)])}
    selves = {id(tensor): place for place, tensor in reversed([*enumerate(operands)])}
    ours: dict[int, int] = {}
    made: list[_Made | None] = []
    for place, leaf in enumerate(leaves):
        if leaf is None:
            made.append(None)
            continue
        if type(leaf) is not FakeTensor or not _is_plain(leaf) or (leaf.requires_grad and id(leaf) not in selves):
            return None
        storage, is_operand = leaf.untyped_storage(), id(leaf) in selves
        operand = theirs.get(storage._cdata)
        if operand is None and storage._cdata in before:
            return None
        attributes = {} if is_operand else dict(leaf.__dict__)
        if any(isinstance(value, torch.Tensor) for value in attributes.values()):
            return None
        made.append(
            _Made(
                operand=selves.get(id(leaf), operand),
                is_operand=is_operand,
                storage=ours.setdefault(storage._cdata, place),
                nbytes=storage.nbytes(),
                size=leaf.shape,
                stride=leaf.stride(),
                offset=int(leaf.storage_offset()),
                dtype=leaf.dtype,
                device=leaf.fake_device,
                attributes=attributes,
            )
        )
    return Footprint(peak_bytes, tuple(made), None if isinstance(result, torch.Tensor) else type(result))
