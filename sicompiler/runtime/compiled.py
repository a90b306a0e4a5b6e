"""Running a rewritten model: which plan fits a call, live parameters, memory given back after an error."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import Program, check_no_autocast, flatten_inputs, named_tensors
from sicompiler.errors import BadInput
from sicompiler.plan import Plan
from sicompiler.runtime.faults import settle


@dataclass(frozen=True)
class Compiled:
    """A rewritten model for one input shape.

    Attributes:
        program: the rewritten graph.
        plan: what it carries out.
    """

    program: Program
    plan: Plan

    def run(self, model: torch.nn.Module, inputs: Sequence[Any]) -> Any:
        """Run the rewritten graph with the parameters of the live model.

        Args:
            model: the live model.
            inputs: flattened by `flatten_inputs`.

        Returns:
            What the model's own forward would return.

        Raises:
            BadInput: called under `torch.autocast`.
            OutOfMemory: the device had less left than the plan needs.
        """
        # at::matmul copies a strided operand beside a factor that requires a gradient, even where none is recorded.
        values = [v.detach() if isinstance(v, torch.Tensor) else v for v in self.program.arguments(model, inputs)]
        check_no_autocast(values)
        handled = sys.exception()
        try:
            return self._results(values)
        except BaseException as error:
            found = settle(error, handled, values, self.plan)
            if found is error:
                raise
            raise found from error

    def _results(self, values: Sequence[Any]) -> Any:
        """What the graph gives, as the model would return it: in a function of its own, whose frame can be cleared."""
        with torch.no_grad():
            flat = self.program.graph_module.forward(*values)  # past fx's wrapper, which prints errors
        return pytree.tree_unflatten(list(flat), self.program.out_spec)


def _leaf_key(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)
    try:
        hash(leaf)
    except TypeError:
        return repr(leaf)
    return (type(leaf), leaf)


def call_key(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """What a plan depends on: structure, shapes and Python values of a call, weights, and settings of the model."""
    leaves, spec = flatten_inputs(args, kwargs)
    weights = tuple((name, tuple(t.shape), t.dtype, t.device) for name, t in named_tensors(model).items())
    return (str(spec), tuple(map(_leaf_key, leaves)), hash(weights), structure_key(model))


# Beside what torch keeps in a module: where accelerate and diffusers keep hooks, which move weights about.
_INTERNAL = (frozenset(vars(torch.nn.Module())) - {"training"}) | {"_hf_hook", "_diffusers_hook"}
_PLAIN = (bool, int, float, str, type(None))
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
MAX_ENTRIES = 256  # of a container of settings; anything longer is data


def structure_key(model: torch.nn.Module) -> int:
    """A hash of what a trace depends on beside the weights: the modules, and the plain settings of each.

    A LoRA that is loaded or scaled, another attention processor, FreeU, a switch turned on: all of them change modules
    or their attributes, and a trace made before no longer computes what the model would.
    """
    found = []
    for path, module in model.named_modules():
        settings = [
            (name, _setting(value, path == "", 2)) for name, value in vars(module).items() if name not in _INTERNAL
        ]
        found.append((path, type(module).__qualname__, tuple(row for row in settings if row[1] is not _IGNORED)))
    return hash(tuple(found))


_IGNORED = object()


def _setting(value: Any, root: bool, depth: int) -> Any:
    """A hashable stand-in for a setting; tensors and modules have their own places in the key."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, (torch.Tensor, torch.nn.Module)) or (root and isinstance(value, _FUNCTIONS)):
        return _IGNORED  # functions of the model itself are where sicompiler and accelerate sit
    name = (type(value).__qualname__, getattr(value, "__qualname__", ""))
    if depth == 0 or isinstance(value, _FUNCTIONS):
        return name
    if isinstance(value, dict):
        inside = [(str(k), _setting(v, root, depth - 1)) for k, v in value.items()] if len(value) <= MAX_ENTRIES else []
    elif isinstance(value, (list, tuple)):
        inside = [("", _setting(v, root, depth - 1)) for v in value] if len(value) <= MAX_ENTRIES else []
    else:  # a configuration, an attention processor
        inside = [(k, _setting(v, root, 0)) for k, v in getattr(value, "__dict__", {}).items()]
    return (*name, *(row for row in inside if row[1] is not _IGNORED))


def check_inference(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse calls that want gradients.

    Raises:
        BadInput: an input requires a gradient.
    """
    if torch.is_grad_enabled():
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                raise BadInput(
                    "an input requires a gradient, but a compiled model runs without autograd; "
                    "call it with detached inputs, or sicompiler.release(model) before training"
                )
