"""Models on a device: eager, and compiled for several budgets."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

import sicompiler
from sicompiler.calibration.loops import ResidualBlock, TransformerBlock
from sicompiler.compiler.prepare import prepare
from sicompiler.device import synchronize
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from sicompiler.zoo.build import build_preset

ROUNDS = 3
Build = Callable[[], tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]]


class Method(torch.nn.Module):
    """A model whose forward is another method of it, as the decoding of a VAE: a module is compiled by its forward.

    Args:
        model: the model.
        method: by name.
    """

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The method."""
        return getattr(self.model, self.method)(*args, **kwargs)


def _preset(name: str, **sizes: Any) -> Build:
    def build() -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
        call = build_preset(name, dtype="float16", fake=False, **sizes)
        model = call.module if call.method == "forward" else Method(call.module, call.method)
        return model, call.args, call.kwargs

    return build


def _module(make: Callable[[], torch.nn.Module], *shape: int) -> Build:
    def build() -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
        torch.manual_seed(0)
        return make().eval(), (torch.randn(shape),), {}

    return build


MODELS: Mapping[str, Build] = {
    "svd": _preset("svd"),
    "svd-vae": _preset("svd-vae", frames=14),
    "animatediff": _preset("animatediff"),
    "wan2.1-1.3b": _preset("wan2.1-1.3b"),
    "wan-vae": _preset("wan-vae", frames=17),
    "ltx-video": _preset("ltx-video"),
    "ltx-vae": _preset("ltx-vae", frames=25),
}
REHEARSED: Mapping[str, Build] = {
    "residual": _module(lambda: ResidualBlock(32), 1, 32, 32, 32),
    "transformer": _module(lambda: TransformerBlock(64, 2), 1, 128, 64),
}


@dataclass(frozen=True)
class Budget:
    """A budget of a run.

    Attributes:
        share: of the unsliced peak of activations; 0 is the floor.
        offload: whether values may be spilled and weights streamed; the share is then of the way from the floor with
            offloading to that without.
    """

    share: float
    offload: bool = False


BUDGETS = {"100 %": Budget(1.0), "50 %": Budget(0.5), "floor": Budget(0.0), "offload": Budget(0.5, offload=True)}


class LoadedModel:
    """A model with random weights on a device, and one call of it.

    Args:
        build: makes it on the CPU.
        device: where it goes.
    """

    def __init__(self, build: Build, device: torch.device) -> None:
        model, args, kwargs = build()
        self.device, self.model = device, model.to(device)
        self.args, self.kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), (args, kwargs))
        self.reference: Any = None
        _, self.planner = prepare(self.model, self.args, self.kwargs)

    def call(self) -> Any:
        """One call, compiled or not."""
        with torch.no_grad():
            return self.model(*self.args, **self.kwargs)

    def eager(self) -> Mapping[str, Any]:
        """The untouched model; its result is kept to compare with."""
        self.reference = self.call()
        return self._measured()

    def compiled(self, budget: Budget) -> Mapping[str, Any]:
        """The model compiled for a budget, as a user does it."""
        if self.reference is None:
            self.reference = self.call()
        nbytes = self.budget_bytes(budget)
        began = time.perf_counter()
        sicompiler.compile_for_budget(self.model, f"{nbytes}B", offload="auto" if budget.offload else "none")
        try:
            result = self.call()
            first = time.perf_counter() - began
            absolute, relative, bitwise = errors(result, self.reference)
            del result
            plan = sicompiler.report(self.model).plans[-1]
            measured = self._measured()
        finally:
            sicompiler.release(self.model)
        return {
            **measured,
            "budget_bytes": nbytes,
            "predicted_bytes": plan.predicted_peak_bytes,
            "predicted_seconds": plan.seconds,
            "first_call_seconds": first,
            "regions": len(plan.regions),
            "spilled": len(plan.spilled),
            "streamed": len(plan.streamed),
            "max_abs_error": absolute,
            "max_rel_error": relative,
            "bitwise": bitwise,
            "holds": measured["allocated_bytes"] <= plan.predicted_peak_bytes <= nbytes,
        }

    def budget_bytes(self, budget: Budget) -> int:
        """Bytes of a budget of this call."""
        floor = self.planner.floor()[0]
        if budget.offload:
            lowest = self.planner.floor("auto")[0]
            return lowest + round((floor - lowest) * budget.share)
        weights = self.planner.weights_bytes
        return max(floor, weights + round((self.planner.unsliced_bytes - weights) * budget.share))

    def _measured(self) -> dict[str, Any]:
        """Peaks of one call, all that torch has on the device included, and the median seconds of some."""
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        with measure_peak(self.device) as peak:
            self.call()
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            self.call()
            synchronize(self.device)
            seconds.append(time.perf_counter() - began)
        reference = sum(t.nbytes for t in pytree.tree_leaves(self.reference) if isinstance(t, torch.Tensor))
        return {
            "allocated_bytes": peak.bytes + (peak.allocated_at_entry or 0) - reference,
            "reserved_bytes": peak.reserved_bytes,
            "seconds": statistics.median(seconds),
        }
