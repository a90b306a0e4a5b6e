"""What a program, and what a plan depends on, as a digest that is the same in every process."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sicompiler.cache.versions import digest_of, installed
from sicompiler.capture import flatten_inputs, same_inputs
from sicompiler.device import descriptions
from sicompiler.guards import ModuleGuards
from sicompiler.guards.durable import durable, durable_digest
from sicompiler.guards.sources import NotDurable

_FEATURES = ("_is_amx_tile_supported", "_is_amx_fp16_supported", "_is_avx512_bf16_supported")


@functools.cache
def versions() -> str:
    """Everything that is installed and decides what becomes of a model: Python, torch and all our code."""
    return digest_of(installed(), str(torch.version.git_version))


def processor() -> str:
    """What of this machine the kernels of the CPU, and with them the workspace, depend on."""
    return digest_of(
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        str(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
        *(str(getattr(torch.cpu, name)()) for name in _FEATURES),
        *_cards(),
    )


def _cards() -> list[str]:
    """The accelerators of this machine, and the settings of their libraries."""
    found = descriptions()
    if not found:
        return []
    return [*found, str(torch.version.cuda), os.environ.get("CUBLAS_WORKSPACE_CONFIG", "")]


def _settings() -> str:
    """Settings of torch that a model can ask for while it is traced."""
    return str(
        (
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cudnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
        )
    )


def call_digest(
    facts: Mapping[str, Any], devices: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """What the program of a call depends on, but for what is decided by values.

    Args:
        facts: of the guards of the model.
        devices: where its weights are.
        method: which of its methods.
        args: positional inputs.
        kwargs: keyword inputs.

    Raises:
        NotDurable: something is known by its identity alone; says what.
    """
    leaves, spec = flatten_inputs(args, kwargs)
    if "0x" in str(spec):
        raise NotDurable("an argument of a class that prints its address")
    inputs = (*map(_leaf, leaves), str(same_inputs(leaves)))
    return digest_of(versions(), _settings(), devices, method, str(spec), *inputs, durable_digest(facts))


class UserCode(torch.nn.Module):
    """Functions of users in the place of a model: guards follow what they read, as they do for a model's own code."""

    def __init__(self, code: Sequence[object]) -> None:
        super().__init__()
        self.code = tuple(code)

    def forward(self) -> Any:
        """What they are reached by."""
        return self.code


def code_digest(code: Sequence[object]) -> str:
    """What functions do, with all that they read: the same in every process with the same sources. Empty for none.

    Args:
        code: functions, other callables, and tuples of these, of numbers and of texts.

    Raises:
        NotDurable: that is not known (of code that was typed in, say).
    """
    return durable_digest(ModuleGuards().facts_of(UserCode(code))) if code else ""


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return durable((type(leaf), tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device))
    return durable((type(leaf), leaf))
