"""Entry points: a named method of a module, `vae.decode` say, as a module that `torch.export` takes.

An adapter that holds the module as a child would give every parameter another name, and its hooks would fire where a
call of the method fires none. The stand-in built here has the parameters, buffers and children of the live module under
their own names.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree

FORWARD = "forward"

# What calling a module does around its forward; a method called by its name goes past all of it.
_AROUND_FORWARD = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
OURS = "_sicompiler_own"  # of a patch of ours on an instance: gives what the instance itself had in its place
_TENSORS = ("_parameters", "_buffers", "_modules")


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


@contextlib.contextmanager
def entry_module(model: torch.nn.Module, method: str) -> Iterator[torch.nn.Module]:
    """A module whose forward is one method of a live module, for the time of a trace.

    What the trace leaves behind in plain attributes of the module or its children (caches that a decoder fills frame by
    frame) is undone: the module is as it was.

    Args:
        model: the live module.
        method: name of the entry point.

    Yields:
        The module itself for `forward`; else a stand-in that shares parameters, buffers and children with it.
    """
    with _attributes_kept(model):
        if method == FORWARD:
            yield model
            return
        stand_in = object.__new__(type(model))
        stand_in.__dict__.update(model.__dict__)
        stand_in.__dict__.update({name: OrderedDict() for name in _AROUND_FORWARD if name in model.__dict__})
        _drop_patch(stand_in, method)
        stand_in.__dict__.pop("_hf_hook", None)  # accelerate's: it would move the weights of the live module
        stand_in.__dict__[FORWARD] = _with_open_results(getattr(stand_in, method))
        yield stand_in


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


def _with_open_results(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call; objects it returns that are no containers to torch, but hold tensors, become containers to it.

    So an encoder may return its distribution, an object of a plain class: the tensors among its attributes are outputs
    of the graph, and a run puts them into a new object of that class.
    """

    @functools.wraps(call)
    def opened(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        for leaf in pytree.tree_leaves(result):
            held = vars(leaf).values() if hasattr(leaf, "__dict__") and not isinstance(leaf, torch.Tensor) else ()
            if any(isinstance(value, torch.Tensor) for value in held):
                pytree.register_pytree_node(type(leaf), _open, functools.partial(_close, type(leaf)))
        return result

    return opened


def _open(holder: object) -> tuple[list[Any], Any]:
    """The tensors an object holds; beside their names, all else it holds."""
    tensors = {name: value for name, value in vars(holder).items() if isinstance(value, torch.Tensor)}
    rest = {name: value for name, value in vars(holder).items() if name not in tensors}
    return list(tensors.values()), (tuple(tensors), rest)


def _close(kind: type, tensors: Iterable[Any], context: Any) -> object:
    holder: object = object.__new__(kind)
    names, rest = context
    holder.__dict__.update(rest, **dict(zip(names, tensors, strict=True)))
    return holder


@contextlib.contextmanager
def _attributes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Restore the plain attributes of a module and its children, and the content of their lists and dicts."""
    saved = []
    for child in model.modules():
        plain = {name: value for name, value in child.__dict__.items() if name not in _TENSORS}
        contents = [(value, value.copy()) for value in plain.values() if type(value) in (list, dict)]
        saved.append((child, plain, contents))
    try:
        yield
    finally:
        for child, plain, contents in saved:
            for name in [name for name in child.__dict__ if name not in plain and name not in _TENSORS]:
                del child.__dict__[name]
            child.__dict__.update(plain)
            for value, content in contents:
                value.clear()
                value.extend(content) if isinstance(value, list) else value.update(content)
