"""What a program, and what a plan depends on, as a digest that is the same in every process."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sicompiler.capture import flatten_inputs
from sicompiler.guards.durable import NotDurable, durable, durable_digest

# Their code is not followed by guards, or decides what is compiled.
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "einops", "peft")
_FEATURES = ("_is_amx_tile_supported", "_is_amx_fp16_supported", "_is_avx512_bf16_supported")
_LONG = 40  # digits of a digest: it names a file


def digest_of(*parts: str) -> str:
    """A digest of texts."""
    return digest_of_bytes("\n".join(parts).encode("utf-8", "surrogatepass"))


def digest_of_bytes(data: bytes) -> str:
    """A digest of bytes."""
    return hashlib.sha256(data).hexdigest()[:_LONG]


@functools.cache
def versions() -> str:
    """Everything that is installed and decides what becomes of a model: Python, torch and all our code."""
    found = [f"{name} {version(name)}" for name in _PACKAGES]
    return digest_of(platform.python_version(), str(torch.version.git_version), *found, _sources())


def version(package: str) -> str:
    """The version of a package; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def _sources() -> str:
    """A digest of the source files of sicompiler: while it is worked on, its version says nothing."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    folders = [root, root / "passes", root / "planners"]  # the last two may be links, which a walk does not follow
    files = {path for folder in folders for path in folder.rglob("*.py")}
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def processor() -> str:
    """What of this machine the kernels of the CPU, and with them the workspace, depend on."""
    return digest_of(
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        str(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
        *(str(getattr(torch.cpu, name)()) for name in _FEATURES),
    )


def call_digest(facts: Mapping[str, Any], method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What the program of a call depends on, but for what is decided by values.

    Args:
        facts: of the guards of the model.
        method: which of its methods.
        args: positional inputs.
        kwargs: keyword inputs.

    Raises:
        NotDurable: something is known by its identity alone; says what.
    """
    leaves, spec = flatten_inputs(args, kwargs)
    if "0x" in str(spec):
        raise NotDurable("an argument of a class that prints its address")
    return digest_of(versions(), method, str(spec), *map(_leaf, leaves), durable_digest(facts))


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return durable((type(leaf), tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device))
    return durable((type(leaf), leaf))
