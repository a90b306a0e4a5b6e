"""What a call gives, told by layouts: the same for every call that is like it.

A model calls the same few functions with tensors of the same layouts over and over, and a fake tensor has nothing but a
layout. So what the first call of a kind gives says what all others give: tensors of these layouts, with memory of their
own, that of an operand, or the operand itself.

Whatever else may have a say (numbers that a fake tensor knows, gradients, autocasts) makes a call like no other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, snapshot_fake
from torch.utils._mode_utils import no_dispatch

from sicompiler.capture.functions import Unlike, key_of


@dataclass(frozen=True, slots=True)
class Result:
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


@dataclass(frozen=True, slots=True)
class Results:
    """What a call gives.

    Attributes:
        tensors: in order; None for a None among them.
        kind: the container they come in; None for one tensor.
    """

    tensors: tuple[Result | None, ...]
    kind: type | None

    @property
    def is_operands(self) -> bool:
        """Whether nothing is new among it."""
        return all(one is None or one.is_operand for one in self.tensors)

    def again(self, operands: Sequence[FakeTensor], note: Callable[[torch.Tensor], None] | None = None) -> Any:
        """What another call of the kind gives, which is not run.

        Args:
            operands: its tensors.
            note: told of every tensor with memory of its own.
        """
        made: list[torch.Tensor | None] = []
        with torch._C.DisableTorchFunction(), no_dispatch():
            for place, one in enumerate(self.tensors):
                if one is None:
                    made.append(None)
                elif one.operand is not None:
                    operand = operands[one.operand]
                    made.append(operand if one.is_operand else tensor_of(one, operand.untyped_storage()))
                elif one.storage < place:
                    beside = made[one.storage]
                    assert beside is not None
                    made.append(tensor_of(one, beside.untyped_storage()))
                else:
                    tensor = tensor_of(one, None)
                    if note is not None:
                        note(tensor)
                    made.append(tensor)
        return made[0] if self.kind is None else self.kind(made)

    def beside(self, result: FakeTensor) -> torch.Tensor | None:
        """A second tensor of the layout and the memory of the one that a call gave."""
        (one,) = self.tensors
        if one is None or one.is_operand:
            return snapshot_fake(result)
        with torch._C.DisableTorchFunction(), no_dispatch():
            return tensor_of(one, result.untyped_storage())


def tensor_of(one: Result, storage: torch.UntypedStorage | None) -> FakeTensor:
    """A fake tensor, without the checks of its class, which take three quarters of the time; called without modes.

    Args:
        one: what is known of it.
        storage: what it lies in; None for memory of its own.
    """
    meta = torch.empty_strided(one.size, one.stride, dtype=one.dtype, device="meta")
    if storage is None and (one.offset or one.nbytes != meta.untyped_storage().nbytes()):
        storage = torch.UntypedStorage(one.nbytes, device="meta")
    if storage is not None:
        with _without_questions(storage):
            meta.set_(storage, one.offset, one.size, one.stride)
    return fake_like(one.attributes, meta, one.device)


def fake_like(attributes: Mapping[str, Any], meta: torch.Tensor, device: torch.device) -> FakeTensor:
    """A fake tensor that knows what another one knew when it was new.

    Args:
        attributes: of the other one, of the same mode.
        meta: its layout.
        device: where it lies.
    """
    made: FakeTensor = torch.Tensor._make_subclass(
        FakeTensor, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=device
    )
    torch._C._set_throw_on_mutable_data_ptr(made)
    made.__dict__.update(attributes)
    return made


def _without_questions(storage: torch.UntypedStorage) -> contextlib.AbstractContextManager[Any]:
    """A block that looks at how large a storage is, without a trace that sees it.

    Behind an input that is a view of more, torch keeps that as a symbol, and every comparison would be an operator.
    """
    nbytes: Any = storage.nbytes()
    if type(nbytes) is int:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    stack.enter_context(disable_proxy_modes_tracing())
    stack.enter_context(nbytes.node.shape_env.suppress_guards())
    return stack


def results_of(result: Any, operands: Sequence[FakeTensor], elsewhere: Collection[int] = ()) -> Results | None:
    """What a call gave; None where it is more than layouts, or comes from elsewhere.

    Args:
        result: of the call.
        operands: its tensors.
        elsewhere: storages that were there before.
    """
    if not isinstance(result, torch.Tensor) and type(result) not in (tuple, list):
        return None
    leaves = [result] if isinstance(result, torch.Tensor) else result
    theirs = {tensor.untyped_storage()._cdata: place for place, tensor in reversed([*enumerate(operands)])}
    selves = {id(tensor): place for place, tensor in reversed([*enumerate(operands)])}
    ours: dict[int, int] = {}
    made: list[Result | None] = []
    for place, leaf in enumerate(leaves):
        if leaf is None:
            made.append(None)
            continue
        if type(leaf) is not FakeTensor or not is_plain(leaf) or (leaf.requires_grad and id(leaf) not in selves):
            return None
        storage, is_operand = leaf.untyped_storage(), id(leaf) in selves
        operand = theirs.get(storage._cdata)
        if operand is None and storage._cdata in elsewhere:
            return None
        attributes = {} if is_operand else dict(leaf.__dict__)
        if any(isinstance(value, torch.Tensor) for value in attributes.values()):
            return None
        made.append(
            Result(
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
    return Results(tuple(made), None if isinstance(result, torch.Tensor) else type(result))


def layouts_of(values: Any, mode: FakeTensorMode, operands: list[FakeTensor]) -> Any:
    """Arguments as something to compare: tensors by layout, and by which of them are or share the same.

    Args:
        values: of a call.
        mode: of its fake tensors.
        operands: its tensors are appended.

    Raises:
        Unlike: there is more to them.
    """
    first: dict[int, int] = {}

    def layout(tensor: torch.Tensor) -> Any:
        if type(tensor) is not FakeTensor or tensor.fake_mode is not mode or not is_plain(tensor):
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


def settings() -> tuple[Any, ...]:
    """What of torch has a say in layouts: the default dtype, and the kernels that it may take for attention."""
    return (torch.get_default_dtype(), *[asked() for asked in _KERNELS])


def is_plain_state() -> bool:
    """Whether neither gradients nor casts nor functional transforms have a say in what a function does."""
    return not (
        torch.is_grad_enabled()  # results hold operands
        or torch.is_inference_mode_enabled()
        or torch._C._is_any_autocast_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_plain(tensor: FakeTensor) -> bool:
    """Whether there is no more to a fake tensor than its layout."""
    return (
        tensor.constant is None
        and tensor.real_tensor is None
        and not tensor._has_symbolic_sizes_strides
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


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
