"""After any refusal a pipeline is as it was before compiling: attributes, weights, where these lie, and its frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import sicompiler
from sicompiler.ops import is_offloaded
from sicompiler.pipelines.pipeline import CompiledPipeline, pipeline_state
from tests.mini_pipeline import MiniUNet, close, mini, picture

ROOMY = "2MiB"
Change = Callable[[Any], None]


def state_of(pipe: Any) -> dict[str, Any]:
    """Every attribute of a pipeline and of what is in it, by identity; weights by value and place."""
    found: dict[str, Any] = {f".{name}": id(value) for name, value in vars(pipe).items()}
    for name, part in pipe.components.items():
        modules = dict(part.named_modules()) if isinstance(part, nn.Module) else {"": part}
        for path, module in modules.items():
            for attribute, value in getattr(module, "__dict__", {}).items():
                found[f"{name}.{path}.{attribute}"] = list(value) if isinstance(value, dict) else id(value)
        for path, tensor in part.state_dict(keep_vars=True).items() if isinstance(part, nn.Module) else ():
            value = tensor.detach()
            found[f"{name}.{path}"] = (id(tensor), tensor.device, is_offloaded(tensor), value.clone().numpy().tobytes())
    return found


def compile_it(pipe: Any, budget: str = ROOMY, **options: Any) -> None:
    sicompiler.compile_for_budget(pipe, budget, **options)


def fails_at_the_last_component(pipe: Any) -> None:
    original = CompiledPipeline._install

    def install(self: CompiledPipeline, owner: Any, role: Any) -> None:
        if role.label == "vae.decode":
            raise sicompiler.BadInput("made to fail")
        original(self, owner, role)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledPipeline, "_install", install)
        compile_it(pipe)


def rehash(**options: Any) -> sicompiler.Rehash:
    return sicompiler.Rehash(**options)


WHILE_COMPILING: dict[str, Change] = {
    "no budget": lambda pipe: compile_it(pipe, "0B"),
    "a budget that is none": lambda pipe: compile_it(pipe, "much"),
    "offload memory of no kind": lambda pipe: compile_it(pipe, offload="disk"),
    "inputs of a module": lambda pipe: compile_it(pipe, example_inputs=((), {})),
    "a plan of a module": lambda pipe: compile_it(pipe, plan="plan.json"),
    "a rehash plan that is not there": lambda pipe: compile_it(pipe, rehash=rehash(plan="nowhere.json")),
    "calls that can't be learned from": lambda pipe: compile_it(
        pipe, rehash=rehash(speedup=1.5, calls=[{"image": torch.zeros(3)}])
    ),
    "a calibration over the budget": lambda pipe: compile_it(
        pipe, "30KiB", rehash=rehash(speedup=1.5, calls=[{"image": picture()}])
    ),
    "in the middle": fails_at_the_last_component,
}


@pytest.mark.parametrize("compiled", [False, True], ids=["untouched", "compiled"])
@pytest.mark.parametrize("compiling", WHILE_COMPILING.values(), ids=WHILE_COMPILING.keys())
def test_a_refusal_while_compiling_leaves_all_as_it_was(compiling: Change, compiled: bool) -> None:
    pipe = mini()
    before, reference = state_of(pipe), pipe(picture())
    if compiled:
        compile_it(pipe)
    with pytest.raises((sicompiler.SicompilerError, ValueError, OSError)):
        compiling(pipe)
    if compiled:
        assert pipeline_state(pipe, "look").budget_bytes == sicompiler.units.parse_bytes(ROOMY)
        assert close(pipe(picture()), reference)
        sicompiler.release(pipe)
    assert without_runs(state_of(pipe)) == without_runs(before)
    assert torch.equal(pipe(picture()), reference)


def without_runs(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what every run of the pipeline changes: its progress, and the tables of its scheduler."""
    return {key: value for key, value in state.items() if not key.startswith((".", "scheduler."))} | {
        key: True for key in state if key.startswith(".") and key != "._interrupt"
    }


class Undecided(MiniUNet):
    """Decides by values in a way that no trace follows."""

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(-sample if float(sample.sum()) > 1e9 else sample, *args, **kwargs)


class Functions(TorchFunctionMode):
    """A user's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def raising(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
    raise KeyboardInterrupt


def no_folder(pipe: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SICOMPILER_OFFLOAD_DIR", "/nowhere/at/all")
        compile_it(pipe, "60KiB")
        pipe(picture())


def call(pipe: Any, **options: Any) -> None:
    pipe(picture(), **options)


def inside(context: Callable[[], contextlib.AbstractContextManager[Any]]) -> Change:
    def change(pipe: Any) -> None:
        with context():
            call(pipe)

    return change


def tiled(pipe: Any) -> None:
    pipe.vae.use_tiling = True
    try:
        call(pipe)
    finally:
        pipe.vae.use_tiling = False


def another_forward(pipe: Any) -> None:
    own = pipe.unet.__dict__["forward"]
    pipe.unet.forward = lambda *args, **kwargs: None
    try:
        call(pipe)
    finally:
        pipe.unet.__dict__["forward"] = own


def wants_gradients(pipe: Any) -> None:
    pipe.vae.decode(torch.ones(1, 4, 6, 6, dtype=torch.float64, requires_grad=True))


WHILE_CALLING: dict[str, tuple[str, Change]] = {
    "over budget": ("30KiB", call),
    "over budget in the last phase": ("110KiB", lambda pipe: call(pipe, ballast=2**17)),
    "no offloading": (ROOMY, no_folder),
    "autocast": (ROOMY, inside(lambda: torch.autocast("cpu", torch.bfloat16))),
    "a function mode": (ROOMY, inside(Functions)),
    "tiling": (ROOMY, tiled),
    "another forward": (ROOMY, another_forward),
    "gradients": (ROOMY, wants_gradients),
    "an interrupted run": (ROOMY, lambda pipe: call(pipe, callback_on_step_end=raising)),
    "a call that the pipeline refuses": (ROOMY, lambda pipe: pipe(torch.zeros(3))),
}


@pytest.mark.parametrize(("budget", "calling"), WHILE_CALLING.values(), ids=WHILE_CALLING.keys())
def test_a_refusal_at_a_call_leaves_nothing_behind(budget: str, calling: Change) -> None:
    pipe = mini()
    reference, before = pipe(picture()), state_of(pipe)
    compile_it(pipe, budget)
    for _ in range(2):
        with pytest.raises((sicompiler.SicompilerError, ValueError, KeyboardInterrupt, RuntimeError)):
            calling(pipe)
    sicompiler.release(pipe)
    assert without_runs(state_of(pipe)) == without_runs(before)
    assert torch.equal(pipe(picture()), reference)


def test_a_denoiser_that_is_not_captured_runs_on_after_the_release() -> None:
    pipe = mini(unet=Undecided())
    reference, before = pipe(picture()), state_of(pipe)
    compile_it(pipe)
    with contextlib.suppress(sicompiler.CaptureError):  # what can be captured is for other tests to say
        call(pipe)
    sicompiler.release(pipe)
    assert without_runs(state_of(pipe)) == without_runs(before)
    assert torch.equal(pipe(picture()), reference)


def test_a_refusal_of_one_pipeline_leaves_the_other_that_shares_compiled() -> None:
    one = mini()
    two = mini(unet=MiniUNet(gain=2.0), vae=one.vae, text_encoder=one.text_encoder)
    wanted = one(picture()), two(picture())
    compile_it(one)
    compile_it(two, "30KiB")
    with pytest.raises(sicompiler.OverBudget):
        call(two)
    with pytest.raises(sicompiler.OverBudget, match="30 KiB"):
        call(one)  # the smaller budget holds for what is shared
    sicompiler.release(two)
    assert close(one(picture()), wanted[0])
    sicompiler.release(one)
    assert torch.equal(one(picture()), wanted[0])
    assert torch.equal(two(picture()), wanted[1])
