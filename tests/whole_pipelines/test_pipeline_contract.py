"""What may not break when a pipeline is taken over: a test for each trap of diffusers, on a pipeline of few layers."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from tests.mini_pipeline import MiniPipeline, MiniText, MiniUNet, calls, close, mini, picture

pytestmark = pytest.mark.usefixtures("cached")

ROOMY = "2MiB"


def floor_of(pipe: Any, **call: Any) -> int:
    """The smallest budget for a call; leaves the pipeline compiled for another."""
    sicompiler.compile_for_budget(pipe, 1)
    pipe(picture(), **call)
    return int(sicompiler.report(pipe).floor_bytes)


def test_every_phase_is_exact_and_within_the_budget_down_to_the_floor() -> None:
    pipe = mini()
    reference = pipe(picture())
    low = floor_of(pipe)
    for budget in (low, 2 * low, 2**30):
        assert sicompiler.compile_for_budget(pipe, f"{budget}B") is pipe
        assert close(pipe(picture()), reference)
        found = sicompiler.verify(pipe, ((picture(),), {}))
        assert found.max_rel_error <= 1e-12
        assert found.fits, str(found)
        assert [row.component for row in found.phases] == ["text_encoder", "vae.encode", "unet", "vae.decode"]
        assert all(row.measured_peak_bytes is not None for row in found.phases)
    with pytest.raises(sicompiler.OverBudget, match="in phase denoise: unet needs") as caught:
        sicompiler.compile_for_budget(pipe, f"{low - 1}B", offload="none")(picture())
    assert caught.value.floor_bytes == low


def test_components_stay_the_objects_they_are_and_save_as_before(tmp_path: Path) -> None:
    pipe = mini()
    before = dict(pipe.components)
    pipe.save_pretrained(tmp_path / "before")
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    assert pipe.components.keys() == before.keys()
    assert all(pipe.components[name] is part for name, part in before.items())
    assert pipe.unet.config["channels"] == 4
    assert pipe.unet.dtype == torch.float64
    pipe.save_pretrained(tmp_path / "after")
    files = sorted(p.relative_to(tmp_path / "before") for p in (tmp_path / "before").rglob("*") if p.is_file())
    assert any(p.suffix == ".safetensors" for p in files)
    for file in files:
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "after" / file).read_bytes()


def test_methods_keep_their_signatures() -> None:
    pipe = mini()
    wanted = [inspect.signature(method) for method in (pipe.unet.forward, pipe.vae.decode, pipe.vae.encode)]
    sicompiler.compile_for_budget(pipe, ROOMY)
    assert [inspect.signature(method) for method in (pipe.unet.forward, pipe.vae.decode, pipe.vae.encode)] == wanted
    assert "forward" not in pipe.vae.__dict__


def test_release_leaves_nothing_behind() -> None:
    pipe = mini()
    parts = (pipe, pipe.unet, pipe.vae, pipe.text_encoder)
    pipe(picture())
    before = [dict(vars(part)) for part in parts]
    sicompiler.compile_for_budget(pipe, ROOMY)
    changed = [set(vars(part)) - set(names) for part, names in zip(parts, before, strict=True)]
    assert changed == [{"_sicompiler", "check_inputs"}, {"forward"}, {"encode", "decode"}, {"forward"}]
    sicompiler.release(pipe)
    assert [set(vars(part)) for part in parts] == [set(names) for names in before]
    with pytest.raises(sicompiler.NotCompiled, match="call compile_for_budget first"):
        sicompiler.report(pipe)


def test_the_registry_that_a_first_call_ends_with_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """Models of diffusers that may be cached get an attribute where their first call ends."""
    from diffusers import CacheMixin

    pipe = mini()
    pipe.unet.__class__ = type("CachedUNet", (CacheMixin, type(pipe.unet)), {})
    reference = pipe(picture())
    vars(pipe.unet).pop("_diffusers_hook")
    sicompiler.compile_for_budget(pipe, ROOMY)
    for _ in range(2):
        assert close(pipe(picture()), reference)
    assert "_diffusers_hook" in vars(pipe.unet)
    assert not [message for message in caplog.messages if "planned again" in message]


def test_offloading_switched_on_afterwards_keeps_the_patch_for_every_run() -> None:
    pipe = mini()
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe.enable_model_cpu_offload(device="cpu")
    for run in (1, 2, 3):  # maybe_free_model_hooks takes hooks off and puts them on again after each
        assert close(pipe(picture()), reference)
        assert calls(pipe, "unet") == 2 * run
        assert calls(pipe, "vae.decode") == run
    pipe.remove_all_hooks()
    assert close(pipe(picture()), reference)
    assert calls(pipe, "unet") == 8
    sicompiler.release(pipe)
    assert not {"_old_forward", "_hf_hook"} & set(vars(pipe.unet))
    assert close(pipe(picture()), reference)


def test_offloading_switched_on_before_is_where_the_patch_goes() -> None:
    pipe = mini()
    reference = pipe(picture())
    pipe.enable_model_cpu_offload(device="cpu")
    moved: list[str] = []
    for name in ("unet", "vae"):
        hook = getattr(pipe, name)._hf_hook
        hook.pre_forward = _told(hook.pre_forward, moved, name)
    sicompiler.compile_for_budget(pipe, ROOMY)
    assert close(pipe(picture()), reference)
    assert moved == ["vae", "unet", "unet", "vae"]  # once a call, none while tracing: hooks move weights
    for run in (2, 3):
        assert close(pipe(picture()), reference)
        assert calls(pipe, "unet") == 2 * run
    assert sicompiler.verify(pipe).max_rel_error <= 1e-12
    sicompiler.release(pipe)
    assert close(pipe(picture()), reference)


def _told(function: Callable[..., Any], calls: list[str], name: str) -> Callable[..., Any]:
    def told(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    return told


def test_a_patch_of_forward_in_front_of_the_hook_would_be_lost() -> None:
    """The trap itself: why the patch goes into `_old_forward`."""
    pipe = mini()
    pipe.enable_model_cpu_offload(device="cpu")
    seen: list[int] = []
    pipe.unet.forward = _told(pipe.unet.forward, seen, 1)  # type: ignore[arg-type]
    pipe(picture())
    assert len(seen) == 2
    pipe(picture())
    assert len(seen) == 2


def test_a_lost_patch_is_renewed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, ROOMY)
    del pipe.unet.__dict__["forward"]
    with caplog.at_level(logging.WARNING, "sicompiler"):
        assert close(pipe(picture()), reference)
    assert "MiniPipeline: unet had lost its plan and gets it back" in caplog.text
    assert calls(pipe, "unet") == 2


def test_a_forward_that_somebody_replaced_is_an_error() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe.unet.forward = lambda *args, **kwargs: None
    with pytest.raises(sicompiler.NotCompiled, match=r"unet of this MiniPipeline has another forward by now.*lambda"):
        pipe(picture())


def test_a_component_that_is_replaced_is_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    before, old = pipe(picture()), pipe.unet
    pipe.unet = MiniUNet().double()
    with caplog.at_level(logging.WARNING, "sicompiler"):
        after = pipe(picture())
    assert "unet is new, it is taken over" in caplog.text
    assert calls(pipe, "unet") == 2
    assert "forward" not in vars(old)
    sicompiler.release(pipe)
    assert close(pipe(picture()), after)
    assert not close(after, before)


def test_a_component_that_is_added_is_taken_over() -> None:
    """As load_ip_adapter adds an image encoder."""
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    pipe.register_modules(image_encoder=MiniText().double())
    after = pipe(picture())
    assert calls(pipe, "image_encoder") == 1
    sicompiler.release(pipe)
    assert close(pipe(picture()), after)


def test_a_component_that_is_dropped_is_forgotten() -> None:
    """As unload_ip_adapter drops the image encoder; nobody else may hold it."""
    pipe = mini(image_encoder=MiniText())
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    pipe.image_encoder = None
    found = sicompiler.verify(pipe, ((picture(),), {}))
    assert found.fits, str(found)
    assert found.max_rel_error <= 1e-12
    assert "image_encoder" not in {row.component for row in found.phases}
    sicompiler.release(pipe)


class Adapted(nn.Module):
    """What a LoRA makes of a convolution."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base, self.extra = base, nn.Conv2d(base.in_channels, base.out_channels, 1).double()
        self.scaling = {"default": 0.5}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base(x) + self.extra(x) * self.scaling["default"]
        return found


@pytest.mark.parametrize("first", [True, False], ids=["before compiling", "after compiling"])
def test_an_adapter_in_place_of_a_layer_is_traced_again_and_so_is_its_scale(first: bool) -> None:
    pipe = mini()
    if not first:
        sicompiler.compile_for_budget(pipe, ROOMY)
        pipe(picture())
    pipe.unet.up = Adapted(pipe.unet.up)
    if first:
        sicompiler.compile_for_budget(pipe, ROOMY)
    whole = pipe(picture())
    pipe.unet.up.scaling["default"] = 2.0
    doubled = pipe(picture())
    sicompiler.release(pipe)
    assert close(pipe(picture()), doubled)
    pipe.unet.up.scaling["default"] = 0.5
    assert close(pipe(picture()), whole)
    assert not close(whole, doubled)


def test_a_switch_of_the_model_is_traced_again() -> None:
    """As FreeU, attention processors and slicing are switched: by attributes, no weight changes."""
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    pipe.unet.gain = 3.0
    after = pipe(picture())
    sicompiler.release(pipe)
    assert close(pipe(picture()), after)


def test_another_dtype_is_followed() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    pipe.to(torch.float32)
    ours = pipe(picture().float())
    assert ours.dtype == torch.float32
    sicompiler.release(pipe)
    assert torch.allclose(ours, pipe(picture().float()), atol=1e-6)


def test_a_vae_cast_up_for_one_phase_is_followed() -> None:
    """As SVD's force_upcast does: weights of another size in another phase."""
    pipe = mini(torch.float32)
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe.vae.to(torch.float64)
    pipe(picture())
    wide = {row.component: row.weights_bytes for row in sicompiler.report(pipe).phases}
    pipe.vae.to(torch.float32)
    ours = pipe(picture())
    rows = [row for row in sicompiler.report(pipe).phases if row.component == "vae.decode"]
    assert sorted(row.weights_bytes for row in rows)[0] < wide["vae.decode"]
    sicompiler.release(pipe)
    assert torch.allclose(ours, pipe(picture()), atol=1e-6)


@pytest.mark.parametrize("return_dict", [True, False])
def test_both_kinds_of_output(return_dict: bool) -> None:
    pipe = mini()
    reference = pipe(picture(), return_dict=return_dict)
    sicompiler.compile_for_budget(pipe, ROOMY)
    assert close(pipe(picture(), return_dict=return_dict), reference)


def test_shapes_come_from_the_call() -> None:
    pipe = mini()
    wanted = [pipe(picture(size)) for size in (24, 36)]
    sicompiler.compile_for_budget(pipe, "4MiB")
    for size, reference in zip((24, 36, 24), (*wanted, wanted[0]), strict=True):
        assert close(pipe(picture(size)), reference)
    assert len(sicompiler.report(pipe).components["unet"].plans) == 2


def test_callbacks_may_change_latents_and_progress_bars_count(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = mini()
    pipe.set_progress_bar_config(disable=False)

    def halve(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kept["latents"] / 2}

    reference = pipe(picture(), callback_on_step_end=halve)
    sicompiler.compile_for_budget(pipe, ROOMY)
    capsys.readouterr()
    assert close(pipe(picture(), callback_on_step_end=halve), reference)
    assert "2/2" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    pipe = mini()
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, ROOMY)

    def stop(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pipe(picture(), callback_on_step_end=stop)
    assert close(pipe(picture()), reference)
    assert calls(pipe, "unet") == 4


def test_two_pipelines_have_two_budgets() -> None:
    one, two = mini(), mini(unet=MiniUNet(gain=2.0))
    wanted = one(picture()), two(picture())
    sicompiler.compile_for_budget(one, ROOMY)
    sicompiler.compile_for_budget(two, "3MiB")
    for _ in range(2):
        assert close(one(picture()), wanted[0])
        assert close(two(picture()), wanted[1])
    assert sicompiler.report(one).budget_bytes == 2 * 2**20
    sicompiler.release(two)
    assert close(one(picture()), wanted[0])
    assert calls(one, "unet") == 6


def test_a_pipeline_made_from_another_shares_its_components_and_their_budget() -> None:
    one = mini()
    reference = one(picture())
    sicompiler.compile_for_budget(one, ROOMY)
    two = MiniPipeline.from_pipe(one, torch_dtype=torch.float64)  # it would cast to float32
    two.set_progress_bar_config(disable=True)
    assert two.unet is one.unet
    assert close(two(picture()), reference)
    assert calls(one, "unet") == 2
    sicompiler.compile_for_budget(two, "3MiB")
    assert close(two(picture()), reference)
    assert close(one(picture()), reference)
    assert (calls(one, "unet"), calls(two, "unet")) == (4, 2)  # each has a report of its own by now


def test_what_the_pipeline_holds_counts_against_the_budget() -> None:
    pipe = mini()
    low = floor_of(pipe)
    ballast = 100 * 1024
    rows = {row.component: row.held_bytes for row in sicompiler.report(pipe).phases}
    high = floor_of(pipe, ballast=ballast)
    held = {row.component: row.held_bytes for row in sicompiler.report(pipe).phases}
    assert held["unet"] - rows["unet"] == ballast  # one of two when the last step begins
    assert held["vae.decode"] - rows["vae.decode"] == 2 * ballast
    sicompiler.compile_for_budget(pipe, f"{low + 1000}B")
    with pytest.raises(sicompiler.OverBudget, match="that the pipeline holds"):
        pipe(picture(), ballast=ballast)
    sicompiler.compile_for_budget(pipe, f"{high}B")  # planned at the first step, and again at the second
    found = sicompiler.verify(pipe, ((picture(),), {"ballast": ballast}))
    assert found.fits, str(found)


def test_looking_for_what_is_held_keeps_nothing_alive() -> None:
    """Local variables are read off running functions; a snapshot left there would hold what the function drops."""
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def watch(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        seen.append(weakref.ref(kept["latents"]))
        alive.extend([seen[step - 2]() is not None] if step >= 2 else [])
        return {}

    pipe(picture(), steps=4, callback_on_step_end=watch)
    assert alive == [False, False]
