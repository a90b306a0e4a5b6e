"""Running a rewritten model: which plan fits a call, live parameters, memory given back after an error."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import _get_current_function_mode_stack

from sicompiler.capture import Program, check_no_autocast, same_inputs
from sicompiler.errors import BadInput
from sicompiler.guards import ModuleGuards
from sicompiler.plan import Plan
from sicompiler.runtime.call import Call
from sicompiler.runtime.faults import settle
from sicompiler.turns import executing


@dataclass
class Untouched:
    """The model as it is, at one input shape.

    Attributes:
        peak_bytes: as measured last, else as simulated, weights and inputs included; None where nobody has looked.
    """

    peak_bytes: int | None = None


@dataclass(frozen=True)
class Executable:
    """A rewritten model for one input shape.

    Attributes:
        program: the rewritten graph.
        plan: what it carries out.
        find_floor: searches for the smallest budget, and the operator that sets it, where making the plan did not.
        untouched: the model without.
    """

    program: Program
    plan: Plan
    find_floor: Callable[[], tuple[int, str]] | None = None
    untouched: Untouched = field(default_factory=Untouched, compare=False)

    @property
    def floor(self) -> tuple[int, str]:
        """The smallest budget, and the operator that sets it; searched for when first asked for.

        Of a plan from a file, of which it is not known, what the plan itself takes.
        """
        if self.plan.floor_bytes is not None:
            return self.plan.floor_bytes, self.plan.floor_operator
        if self.find_floor is not None:
            return self.find_floor()
        return self.plan.predicted_peak_bytes, ""

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
        return self.call(self.program.arguments(model, inputs))

    def call(self, arguments: Sequence[Any]) -> Any:
        """Run the rewritten graph on what its placeholders stand for.

        Args:
            arguments: in their order.

        Raises:
            BadInput: called under `torch.autocast`.
            OutOfMemory: the device had less left than the plan needs.
        """
        # at::matmul copies a strided operand beside a factor that requires a gradient, even where none is recorded.
        values = [v.detach() if isinstance(v, torch.Tensor) else v for v in arguments]
        check_no_autocast(values)
        handled = sys.exception()
        try:
            with executing():
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
        return self.program.results(flat)


_PLAIN = (vars(torch.Tensor)["__torch_function__"].__func__, torch._C._disabled_torch_function_impl)


def _leaf_key(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device)
    try:
        hash(leaf)
    except TypeError:
        return repr(leaf)
    if isinstance(leaf, float):
        return (type(leaf), math.copysign(1.0, leaf), leaf)  # 0.0 == -0.0
    return (type(leaf), leaf)


def call_key(guards: ModuleGuards, model: torch.nn.Module, call: Call) -> Hashable:
    """What a plan depends on: structure, shapes and Python values of a call, and what the guards of the model tell.

    Args:
        guards: of the model, kept from call to call.
        model: the live model.
        call: of one of its methods.
    """
    return (str(call.spec), tuple(map(_leaf_key, call.flat)), same_inputs(call.flat), guards.key(model))


def _tool_around() -> str:
    """A tool of torch around a call that calls with something else than tensors, for people; "" where there is none."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func (vmap, grad, jvp, functionalize)"
    if torch._C._is_tracing():
        return "torch.jit.trace"
    if get_proxy_mode() is not None:
        return "a trace (torch.export, make_fx)"
    return ""


def check_inference(call: Call) -> None:
    """Refuse calls that want gradients, and those that somebody traces or changes from outside of the model.

    Raises:
        BadInput: an input requires a gradient, an input or an active `TorchFunctionMode` may replace functions of
            torch, or something of torch traces or transforms the call.
    """
    tool = _tool_around()
    if tool:
        raise BadInput(
            f"called inside of {tool}, which sees stand-ins for tensors where a plan needs tensors; call the compiled "
            "model outside of it, or sicompiler.release(model) before"
        )
    for mode in _get_current_function_mode_stack():
        if type(mode).__module__.partition(".")[0] != "torch":
            raise BadInput(
                f"called inside of {type(mode).__qualname__}, a TorchFunctionMode: it may replace what functions of "
                "torch compute, which a graph does not follow; call the compiled model outside of it, or use a "
                "TorchDispatchMode, which sees every operator"
            )
    for leaf in call.flat:
        if not isinstance(leaf, torch.Tensor):
            continue
        function: Any = type(leaf).__torch_function__
        if getattr(function, "__func__", function) not in _PLAIN:
            raise BadInput(
                f"an input is of class {type(leaf).__qualname__}, which may replace what functions of torch compute on "
                "it, which a graph does not follow; call the compiled model with x.as_subclass(torch.Tensor)"
            )
        if leaf.requires_grad and torch.is_grad_enabled():
            raise BadInput(
                "an input requires a gradient, but a compiled model runs without autograd; "
                "call it with detached inputs, or sicompiler.release(model) before training"
            )
