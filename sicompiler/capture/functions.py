"""What tells one call of a function of torch from another: its arguments, and what of torch's own state has a say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sicompiler.capture.results import Opened

_ATOMS = frozenset({int, bool, str, bytes, type(None), type(...), type(NotImplemented)})
_KINDS = frozenset({torch.dtype, torch.device, torch.layout, torch.memory_format})


class Unlike(Exception):
    """The second call is not known to be like the first one."""


def is_torchs(func: Any) -> bool:
    """Whether a function is no code of others, which may read anything, that asks for `__torch_function__` itself."""
    module = getattr(func, "__module__", None)
    return module is None or str(module).partition(".")[0] == "torch"


def key_of(value: Any, number: Callable[[torch.Tensor], int]) -> Any:
    """A value as something to compare: equal for nothing but the same."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return ("tensor", number(value))
    if kind in _ATOMS or kind in _KINDS:
        return (kind, value)
    if kind in (float, complex):
        return (kind, repr(value))
    if kind is slice:
        return (kind, *[key_of(part, number) for part in (value.start, value.stop, value.step)])
    if kind is dict:
        return (kind, *[(key_of(name, number), key_of(entry, number)) for name, entry in value.items()])
    if isinstance(value, (list, tuple)):
        return (kind, *[key_of(entry, number) for entry in value])
    if isinstance(value, Opened):
        return (kind, *value.template.content, *[key_of(entry, number) for entry in value.tensors])
    raise Unlike(f"a {kind.__name__}")


def depths() -> tuple[int, int]:
    """How many modes are on: those that see functions, and those that see operators."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def state_of(before: Sequence[int]) -> tuple[Any, ...]:
    """What of torch has a say in what a function gives; last, whether that can't be told in full."""
    functions, operators = depths()
    special = torch._C._is_any_autocast_enabled() or torch._C._functorch.peek_interpreter_stack() is not None
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        functions - before[0],
        operators - before[1],
        special,
    )
