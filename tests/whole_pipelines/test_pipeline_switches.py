"""Everything a user may switch on a pipeline, before compiling or after: followed at the next call, or refused by name.

Each test has two pipelines of the same weights, one of them compiled, and throws the same switches on both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    UniPCMultistepScheduler,
)
from diffusers.loaders import PeftAdapterMixin

import sicompiler
from tests.mini_pipeline import MiniPipeline, MiniUNet, calls, close, mini, picture
from tests.pipeline_parts import denoiser

pytestmark = pytest.mark.usefixtures("cached")

ROOMY = "2MiB"
Switch = Callable[[Any], Any]


class Adaptable(MiniUNet, PeftAdapterMixin):  # type: ignore[misc]
    """A denoiser that takes a LoRA."""


def adaptable() -> Any:
    torch.manual_seed(3)
    return mini(unet=Adaptable())


def add_lora(pipe: Any) -> None:
    """Random weights from the start: those of a fresh LoRA change nothing."""
    from peft import LoraConfig

    torch.manual_seed(7)
    layers = ["up", "down", "prompt"]
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=layers, init_lora_weights=False))
    pipe.unet.double()


LORA: tuple[tuple[str, Switch], ...] = (
    ("added", add_lora),
    ("scaled", lambda pipe: pipe.unet.set_adapters(["default"], [0.25])),
    ("fused", lambda pipe: pipe.unet.fuse_lora()),
    ("fused no more", lambda pipe: pipe.unet.unfuse_lora()),
    ("off", lambda pipe: pipe.unet.disable_adapters()),
    ("on again", lambda pipe: pipe.unet.enable_adapters()),
    ("another weight", lambda pipe: pipe.unet.up.lora_A["default"].weight.data.mul_(2)),
    ("unloaded", lambda pipe: pipe.unet.unload_lora()),
)
SAME_RESULT = ("fused", "fused no more")  # as before, by another way


@pytest.mark.parametrize("compiled_before", range(3), ids=["before the LoRA", "when it is there", "when it is scaled"])
def test_a_lora_is_followed_whatever_is_done_with_it(compiled_before: int) -> None:
    pytest.importorskip("peft", reason="LoRAs need peft")
    ours, theirs = adaptable(), adaptable()
    before = theirs(picture())
    for number, (name, switch) in enumerate(LORA):
        if number == compiled_before:
            sicompiler.compile_for_budget(ours, ROOMY)
            assert close(ours(picture()), before), "before"
        switch(ours)
        switch(theirs)
        after = theirs(picture())
        assert close(after, before) == (name in SAME_RESULT), f"{name}: the switch itself"
        assert close(ours(picture()), after), name
        before = after
    assert calls(ours, "unet") > 0
    sicompiler.release(ours)
    assert close(ours(picture()), before)


@pytest.mark.parametrize(
    "scheduler", [DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, UniPCMultistepScheduler]
)
def test_another_scheduler_is_followed_and_what_it_holds_counts(scheduler: Any) -> None:
    """Multistep schedulers keep the outputs of earlier steps: they are on the device while the denoiser runs."""
    ours, theirs = mini(), mini()
    sicompiler.compile_for_budget(ours, ROOMY)
    ours(picture(), steps=3)
    held = held_by(ours)
    for pipe in (ours, theirs):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    torch.manual_seed(0)
    wanted = theirs(picture(), steps=3)
    torch.manual_seed(0)
    assert close(ours(picture(), steps=3), wanted)
    if scheduler.__name__.endswith("MultistepScheduler"):
        assert held_by(ours) >= held + 2 * 4 * 12 * 12 * 8  # two more latents of 4 x 12 x 12
    torch.manual_seed(0)
    found = sicompiler.verify(ours, ((picture(),), {"steps": 3}))
    assert found.fits, str(found)


def held_by(pipe: Any) -> int:
    return max(int(row.held_bytes) for row in sicompiler.report(pipe).phases if row.component == "unet")


@pytest.mark.parametrize("offloaded", [False, True], ids=["resident", "offloaded"])
@pytest.mark.parametrize("stop", ["interrupt", "exception"])
def test_a_run_that_is_stopped_leaves_no_state(stop: str, offloaded: bool) -> None:
    """`pipe._interrupt = True` ends a run by itself; after an exception nobody gets to clean up."""
    pipe = mini()
    reference = pipe(picture(), steps=3)
    if offloaded:
        pipe.enable_model_cpu_offload(device="cpu")
    sicompiler.compile_for_budget(pipe, ROOMY)

    def interrupt(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        if stop == "exception":
            raise KeyboardInterrupt
        pipe._interrupt = True
        return {}

    for run in (1, 2):
        if stop == "exception":
            with pytest.raises(KeyboardInterrupt):
                pipe(picture(), steps=3, callback_on_step_end=interrupt)
        else:
            pipe(picture(), steps=3, callback_on_step_end=interrupt)
        assert calls(pipe, "unet") == run
    assert close(pipe(picture(), steps=3), reference)
    assert calls(pipe, "unet") == 5
    found = sicompiler.verify(pipe, ((picture(),), {"steps": 3}))
    assert found.fits, str(found)


def test_two_pipelines_run_at_once_on_shared_components() -> None:
    """One runs inside the other, in its callback: what both hold counts, and each gives its own result."""
    one = mini()
    two = MiniPipeline.from_pipe(one, torch_dtype=torch.float64)
    two.set_progress_bar_config(disable=True)
    inner: list[torch.Tensor] = []

    def run_the_other(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        inner.append(two(picture(36)))
        return {}

    wanted = one(picture(), steps=3, callback_on_step_end=run_the_other), two(picture(36))
    sicompiler.compile_for_budget(one, "4MiB")
    assert close(two(picture(36)), wanted[1])
    held = held_by(one)
    assert close(one(picture(), steps=3, callback_on_step_end=run_the_other), wanted[0])
    assert held_by(one) > held  # the latents of the outer one beside those of the inner one
    assert all(close(found, wanted[1]) for found in inner)


@pytest.mark.parametrize("before", [True, False], ids=["before compiling", "after compiling"])
def test_sequential_offload_is_refused_with_advice(before: bool) -> None:
    """accelerate leaves no weights to plan with: they come layer by layer, from where a graph does not look."""
    pipe = mini()
    advice = r"meta device, as enable_sequential_cpu_offload.*remove_all_hooks.*enable_model_cpu_offload"
    if not before:
        sicompiler.compile_for_budget(pipe, ROOMY)
        pipe(picture())
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(sicompiler.BadInput, match=advice):
        sicompiler.compile_for_budget(pipe, ROOMY) if before else pipe(picture())


def _pyramid(model: Any) -> None:
    skip = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (100, 800)}
    model.enable_cache(PyramidAttentionBroadcastConfig(**skip, current_timestep_callback=lambda: 500))


def _first_block(model: Any) -> None:
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))


def _groups(model: Any) -> None:
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("before", [True, False], ids=["before compiling", "after compiling"])
@pytest.mark.parametrize(
    ("switch", "name"),
    [(_pyramid, "pyramid"), (_first_block, "fbc"), (_groups, "group_offload")],
    ids=["pyramid attention", "first block cache", "group offload"],
)
def test_what_keeps_state_or_moves_weights_inside_a_call_is_refused(switch: Any, name: str, before: bool) -> None:
    """The hooks of diffusers: a graph that was traced once would go past them."""
    pipe = mini(unet=denoiser("wan2.1-1.3b", torch.float64))
    if not before:
        sicompiler.compile_for_budget(pipe, ROOMY)
    switch(pipe.unet)
    with pytest.raises(sicompiler.BadInput, match=rf"hooks are registered on .*unet.*{name}.*disable them before"):
        sicompiler.compile_for_budget(pipe, ROOMY) if before else pipe(picture())
