"""Weights that are no plain tensors: quantised ones of many kinds, told by what they are, and where their bytes lie.

A graph holds operators on plain tensors. A weight that is a tensor of a class of its own does something else when an
operator reads it, and a module that casts or unpacks its weights around its forward is not what a trace would see. So
neither is captured: what has to be planned is refused, with the scheme's name; what may run untouched does so, and its
bytes are counted where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.parameter import Buffer, is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sicompiler.device import granule_bytes, rounded

_PLAIN = (torch.Tensor, torch.nn.Parameter, Buffer, FakeTensor, FunctionalTensor)
_DEPTH = 3  # a 4-bit weight keeps a state, which keeps a state of its own

# A scheme by the package that defines the class of its weights or layers; the packages are not imported to find out.
_PACKAGES = {
    "torchao": "torchao",
    "diffusers.quantizers.gguf": "GGUF",
    "optimum.quanto": "quanto",
    "bitsandbytes": "bitsandbytes",
    "sdnq": "SDNQ",
    "hqq": "HQQ",
    "torch.ao.nn": "torch.ao",
}
_CASTING = "layerwise_casting"  # the name of a hook of diffusers, which casts a layer's weights up for its forward
CASTING_HOOKS = frozenset({_CASTING, "peft_autocast_disable"})  # these do no more than cast


@functools.cache
def _package(kind: type) -> str:
    """What people call the scheme that a class, or one that it derives from, belongs to."""
    places = [f"{base.__module__}." for base in kind.__mro__]
    return next((name for name in _PACKAGES if any(where.startswith(f"{name}.") for where in places)), "")


def _scheme(kind: type) -> str:
    package = _package(kind)
    return f"{_PACKAGES[package]}: " if package else ""


def _weights(module: torch.nn.Module) -> tuple[str, str] | None:
    """A parameter or buffer of a class of its own, or with a dtype of its own."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or (type(tensor) in _PLAIN and not tensor.is_quantized):
            continue
        if is_lazy(tensor):
            continue  # of a lazy module: there is no weight yet, and torch says so
        if type(tensor) in _PLAIN:
            return name, f"torch.ao: %s is of dtype {str(tensor.dtype).removeprefix('torch.')}"
        return name, f"{_scheme(type(tensor))}%s is of class {type(tensor).__qualname__}"
    return None


def _casting(module: torch.nn.Module) -> tuple[str, str] | None:
    """A hook of diffusers that keeps the weights of a layer in another dtype than it computes in."""
    hook = getattr(module.__dict__.get("_diffusers_hook"), "hooks", {}).get(_CASTING)
    if hook is None:
        return None
    return "", f"layerwise casting: %s is stored as {str(getattr(hook, 'storage_dtype', '')).removeprefix('torch.')}"


def _layer(module: torch.nn.Module) -> tuple[str, str] | None:
    """A layer that quantises by itself."""
    kind: Any = type(module)
    return ("", f"{_scheme(kind)}%s is of class {kind.__qualname__}") if _package(kind) else None


def _loader(module: torch.nn.Module) -> tuple[str, str] | None:
    """What diffusers and transformers note on a model that they loaded quantised."""
    quantiser = module.__dict__.get("hf_quantizer")
    if quantiser is None:
        return None
    method = getattr(getattr(quantiser, "quantization_config", None), "quant_method", type(quantiser).__name__)
    return "", f"{getattr(method, 'value', method)}: %s was loaded by {type(quantiser).__qualname__}"


_SIGNS: tuple[Callable[[torch.nn.Module], tuple[str, str] | None], ...] = (_weights, _casting, _layer, _loader)


def scheme_of(model: torch.nn.Module) -> str:
    """How the weights of a model are quantised, with one of them as the example: "" where they are not.

    It runs at every call, for every module of a model.
    """
    for module in modules_in(model):
        for sign in _SIGNS:
            seen = sign(module)
            if seen is not None:
                path = next(path for path, child in model.named_modules() if child is module)
                return seen[1] % (".".join(filter(None, (path, seen[0]))) or "the model")
    return ""


def can_be_faked(model: torch.nn.Module) -> bool:
    """Whether a model may be run on fake tensors: code that goes by the address of a tensor would crash on them.

    Kernels of quantised layers do that. Those of tensors that tell torch what they are made of go through torch.
    """
    tensors = list(weights_in(model))
    if not all(type(tensor) in _PLAIN or is_traceable_wrapper_subclass(tensor) for tensor in tensors):
        return False
    return any(map(is_traceable_wrapper_subclass, tensors)) or not scheme_of(model)


def refusal(label: str, scheme: str) -> str:
    """The line that says that a model's weights are quantised, and what to do."""
    return (
        f"the weights of {label} are quantised ({scheme}), which is not supported yet; "
        "load it without quantisation: weights that do not fit are streamed"
    )


def stored(tensor: torch.Tensor, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """The plain tensors in which the bytes of a tensor lie: itself, or what a class of its own holds inside.

    Args:
        tensor: any tensor.
        depth: how far to look into objects that it holds.
    """
    if type(tensor) in _PLAIN:
        yield tensor
    elif is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from stored(getattr(tensor, name), depth)
    else:
        yield tensor
        yield from _held(vars(tensor).values(), depth)


def _held(values: Iterable[object], depth: int) -> Iterator[torch.Tensor]:
    """Tensors among the attributes of an object and of the objects it holds; modules hold weights of their own."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield from stored(value, depth)
        elif depth and not isinstance(value, (torch.nn.Module, type)):
            yield from _held(getattr(value, "__dict__", {}).values(), depth - 1)


def storage_bytes(tensors: Iterable[torch.Tensor], device_type: str | None = None) -> dict[int, int]:
    """Bytes that the storages behind tensors take, by storage: what two tensors share is there once.

    Args:
        tensors: any, those that hold others inside too.
        device_type: whose allocator rounds them up; None: that of the device they are on.
    """
    found: dict[int, int] = {}
    for tensor in tensors:
        for plain in (tensor,) if type(tensor) in _PLAIN else stored(tensor):
            if plain.layout is torch.strided:
                storage = plain.untyped_storage()
                found[storage._cdata] = rounded(storage.nbytes(), granule_bytes(device_type or plain.device.type))
    return found


def modules_in(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Every module of a model once, itself first; at a third of the time of `model.modules()`."""
    found: dict[int, torch.nn.Module] = {}
    left = [model]
    while left:
        module = left.pop()
        if id(module) not in found:
            found[id(module)] = module
            left += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found.values())


def weights_in(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers of a model; those that two modules share may come twice."""
    for module in modules_in(model):
        for own in (module._parameters, module._buffers):
            for tensor in own.values():
                if tensor is not None:
                    yield tensor
