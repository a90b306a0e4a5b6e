"""AnimateDiff as its users change it, before compiling or after: IP-Adapters, LoRAs, FreeU, attention processors.

Only the denoiser runs, one step: prompts come as embeddings, and latents are what is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sicompiler
from tests.mini_pipeline import calls
from tests.pipeline_parts import TEXT, TOKENS, clip_vision, denoiser, feature_extractor, image
from tests.pipelines import animatediff, run

F64 = torch.float64
TWO_BLOCKS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
}
TOLERANCE = 1e-6  # time steps and positions are computed in float32 whatever the weights are
Switch = tuple[str, Callable[[Any], Any], dict[str, Any]]
"""Its name, what it does, and what the calls have from then on."""


def make() -> Any:
    pipe = animatediff(F64)
    pipe.unet = denoiser("animatediff", F64, **TWO_BLOCKS)
    pipe.register_modules(image_encoder=clip_vision(F64), feature_extractor=feature_extractor())
    return pipe


def call(**changes: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(4)
    both = torch.randn(2, 1, TOKENS, TEXT, dtype=F64, generator=draw)
    return {
        "prompt_embeds": both[0], "negative_prompt_embeds": both[1], "height": 16, "width": 16, "num_frames": 2,
        "num_inference_steps": 1, "output_type": "latent", **changes,
    }  # fmt: skip


def load_ip_adapter(pipe: Any) -> None:
    """Random weights of the shapes that the denoiser asks for, from memory."""
    torch.manual_seed(6)
    projection = {
        "proj.weight": (4 * TEXT, TEXT),
        "proj.bias": (4 * TEXT,),
        "norm.weight": (TEXT,),
        "norm.bias": (TEXT,),
    }
    weights = {
        "image_proj": {name: torch.randn(shape, dtype=F64) for name, shape in projection.items()},
        "ip_adapter": {},
    }
    number = 1
    for name in pipe.unet.attn_processors:
        if "attn2" in name and "motion_modules" not in name:
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for part in ("to_k_ip", "to_v_ip"):
                weights["ip_adapter"][f"{number}.{part}.weight"] = torch.randn(width, TEXT, dtype=F64)
        number += 2 if "attn2" in name and "motion_modules" not in name else 0
    pipe.load_ip_adapter(weights, subfolder="", weight_name="tiny", image_encoder_folder=None)


PICTURE = {"ip_adapter_image": image(32, 32)}
IP_ADAPTER: tuple[Switch, ...] = (
    ("loaded", load_ip_adapter, PICTURE),
    ("scaled", lambda pipe: pipe.set_ip_adapter_scale(0.3), PICTURE),
    ("unloaded", lambda pipe: pipe.unload_ip_adapter(), {}),
)


def load_lora(pipe: Any) -> None:
    """Random weights for some projections of attention, from memory, in diffusers' own names."""
    torch.manual_seed(8)
    weights = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_k")):
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, dtype=F64)
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, dtype=F64)
    pipe.load_lora_weights(weights, adapter_name="tiny")


LORA: tuple[Switch, ...] = (
    ("loaded", load_lora, {}),
    ("scaled", lambda pipe: pipe.set_adapters(["tiny"], [0.5]), {}),
    ("scaled in the call", lambda pipe: None, {"cross_attention_kwargs": {"scale": 0.5}}),
    ("fused", lambda pipe: pipe.fuse_lora(components=["unet"], lora_scale=2.0), {}),
    ("fused no more", lambda pipe: pipe.unfuse_lora(components=["unet"]), {}),
    ("unloaded", lambda pipe: pipe.unload_lora_weights(), {}),
)
OTHERS: tuple[Switch, ...] = (
    ("FreeU", lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), {}),
    ("no FreeU", lambda pipe: pipe.disable_freeu(), {}),
    ("queries, keys and values in one", lambda pipe: pipe.unet.fuse_qkv_projections(), {}),
    ("and apart", lambda pipe: pipe.unet.unfuse_qkv_projections(), {}),
    ("without guidance", lambda pipe: None, {"guidance_scale": 1.0}),
    ("frames decoded one by one", lambda pipe: pipe.vae.enable_slicing(), {"output_type": "pt"}),
)


SWITCHES = {"IP-Adapter": IP_ADAPTER, "LoRA": LORA, "others": OTHERS}


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("which", SWITCHES)
def test_what_is_switched_before_compiling_or_after_is_followed(which: str, before: bool) -> None:
    if which == "LoRA":
        pytest.importorskip("peft", reason="LoRAs need peft")
    ours, theirs = make(), make()
    previous = run(theirs, call())
    if not before:
        sicompiler.compile_for_budget(ours, 1)
        assert close(run(ours, call()), previous)
    for number, (name, switch, changes) in enumerate(SWITCHES[which]):
        switch(ours)
        switch(theirs)
        if before and number == 0:
            sicompiler.compile_for_budget(ours, 1)
        after = run(theirs, call(**changes))
        assert close(run(ours, call(**changes)), after), name
        previous = after
    assert calls(ours, "unet") > 0
    sicompiler.release(ours)
    assert torch.equal(run(ours, call(**changes)), previous)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE)
