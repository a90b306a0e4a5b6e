"""Workspace of composite operators: they are run on meta tensors, and what their parts allocate is added up.

An operator like `einsum` is a C++ function that calls other operators. On meta tensors it calls the same ones, and
frees what lies between them at the same moments, without a byte of memory. The parts that have workspace of their own
are asked for it in the same table.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sicompiler.facts.calls import bind, flatten_tensors
from sicompiler.facts.storages import TensorFact, fact_of
from sicompiler.facts.workspace.layout import Formula, KernelCall, kernel_call, operand_copies

Part = Callable[[KernelCall], int]


def composite(part: Part) -> Formula:
    """The formula of composite operators.

    Args:
        part: workspace of the operators they call.
    """

    @lru_cache(maxsize=10000)
    def peak(target: OpOverload, facts: tuple[TensorFact, ...], spec: pytree.TreeSpec, plain: tuple[Any, ...]) -> int:
        rest = iter(facts)
        leaves = [_meta(next(rest)) if leaf is _TENSOR else leaf for leaf in plain]
        return _run(target, pytree.tree_unflatten(leaves, spec), part)

    def formula(call: KernelCall) -> int:
        """Bytes of one call. Where a slice doesn't fit the sizes among its arguments: a copy of its operands."""
        leaves, spec = pytree.tree_flatten(dict(call.arguments))
        facts = tuple(_anonymous(leaf) for leaf in leaves if isinstance(leaf, TensorFact))
        plain = tuple(_TENSOR if isinstance(x, TensorFact) else x for x in leaves)
        try:
            return peak(call.target, facts, spec, plain)
        except (RuntimeError, NotImplementedError):
            return operand_copies(call) + sum(t.nbytes for t in call.results)

    return formula


def unknown(part: Part) -> Formula:
    """The formula of operators nobody measured: a copy of their operands, or what the parts of a composite one take.

    Args:
        part: workspace of the operators they call.
    """
    followed = composite(part)

    def formula(call: KernelCall) -> int:
        copies = operand_copies(call) + _SMALL
        if not torch._C._dispatch_has_kernel_for_dispatch_key(call.target.name(), "CompositeImplicitAutograd"):
            return copies
        try:
            return max(copies, followed(call))
        except (RuntimeError, NotImplementedError):
            return copies  # a part asks for values, which meta tensors have not

    return formula


_SMALL = 2**10  # numbers and tables
_TENSOR = object()


def _anonymous(tensor: TensorFact) -> TensorFact:
    return TensorFact(tensor.shape, tensor.stride, tensor.dtype, 0)


def _meta(tensor: TensorFact) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride, dtype=tensor.dtype, device="meta")


def _run(target: OpOverload, arguments: dict[str, Any], part: Part) -> int:
    keyword = {a.name for a in target._schema.arguments if a.kwarg_only}
    args = tuple(value for name, value in arguments.items() if name not in keyword)
    kwargs = {name: value for name, value in arguments.items() if name in keyword}
    given = flatten_tensors(arguments, lambda value: isinstance(value, Tensor))
    with _disable_current_modes(), torch.no_grad(), _Allocations(target, given, part) as seen:
        results = target(*args, **kwargs)
    made = {t.untyped_storage()._cdata: t.untyped_storage() for t in pytree.tree_leaves(results)}
    kept: int = sum(s.nbytes() for key, s in made.items() if key not in seen.given)
    peak: int = seen.peak - kept
    return max(0, peak)


class _Allocations(TorchDispatchMode):
    """Follows what the parts of one operator allocate and release.

    Attributes:
        peak: the most bytes at any time, what parts need for themselves included.
        given: storages that were there before.
    """

    def __init__(self, target: OpOverload, given: Sequence[Tensor], part: Part) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.target, self.part = target, part
        self.given = {t.untyped_storage()._cdata for t in given}
        self.peak: int = 0
        self._level: int = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._follow(tensor.untyped_storage())
        arguments = bind(func, args, kwargs)
        operands = flatten_tensors(arguments, lambda value: isinstance(value, Tensor))
        own = 0
        if operands and func is not self.target:
            own = self.part(kernel_call(func, [*map(fact_of, operands)], [*map(fact_of, made)], arguments))
        self.peak = max(self.peak, self._level + own)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self.given or key in self._alive:
            return
        self._level += nbytes

        def released(_: object) -> None:
            self._level -= nbytes
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, released)
