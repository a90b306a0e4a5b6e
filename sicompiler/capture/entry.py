"""Entry points: a named method of a module, `vae.decode` say, as a module that `torch.export` takes.

An adapter that holds the module as a child would give every parameter another name, and its hooks would fire where a
call of the method fires none. The stand-in built here has the parameters, buffers and children of the live module under
their own names.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

FORWARD = "forward"

# What calling a module does around its forward; a method called by its name goes past all of it.
AROUND_FORWARD = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
OURS = "_sicompiler_own"  # of a patch of ours on an instance: gives what the instance itself had in its place


def bound_method(model: torch.nn.Module, method: str) -> Callable[..., Any]:
    """What a call enters: the module itself for `forward`, so that its hooks fire, else the method.

    Args:
        model: the live module.
        method: name of the entry point.
    """
    found: Callable[..., Any] = model if method == FORWARD else getattr(model, method)
    return found


def entry_label(name: str, method: str) -> str:
    """An entry point for people: `unet`, `vae.decode`."""
    return name if method == FORWARD else f"{name}.{method}"


def has_method(model: torch.nn.Module, method: str) -> bool:
    """Whether a module has an entry point of that name."""
    return callable(getattr(model, method, None))


def entry_module(model: torch.nn.Module, method: str) -> torch.nn.Module:
    """A module whose forward is one method of a live module, to be traced.

    Hooks around the forward of the live module are left out: they fire around a method called by its name never, and
    around a compiled forward in the call of the live module.

    Args:
        model: the live module.
        method: name of the entry point.

    Returns:
        A stand-in that shares parameters, buffers and children with the live module.
    """
    stand_in = object.__new__(type(model))
    stand_in.__dict__.update(model.__dict__)
    stand_in.__dict__.update({name: OrderedDict() for name in AROUND_FORWARD if name in model.__dict__})
    _drop_patch(stand_in, method)
    stand_in.__dict__.pop("_hf_hook", None)  # accelerate's: it would move the weights of the live module
    stand_in.__dict__[FORWARD] = getattr(stand_in, method)
    return stand_in


def _drop_patch(stand_in: torch.nn.Module, method: str) -> None:
    """Have a stand-in run its own method, where a patch of ours on the live module would lead back to that."""
    patch: Any = stand_in.__dict__.get(method)
    give = getattr(patch, OURS, None)
    if give is not None:
        del stand_in.__dict__[method]
        own = give(patch.__self__)
        if own is not None:
            stand_in.__dict__[method] = own


@contextlib.contextmanager
def only_patch(model: torch.nn.Module, method: str, patch: object, hooks: Iterable[str]) -> Iterator[None]:
    """Have a method of a live model be a patch, and nothing else, in a block.

    Another thread may call the method at any time: the patch is there before what leads to it otherwise goes.

    Args:
        model: the live model.
        method: which method.
        patch: what it is.
        hooks: attributes of the instance that are taken off.
    """
    attributes = model.__dict__
    before = attributes.get(method)
    attributes[method] = patch
    saved = {name: attributes.pop(name) for name in hooks if name in attributes}
    try:
        yield
    finally:
        attributes.update(saved)
        if before is None:
            attributes.pop(method, None)
        else:
            attributes[method] = before
