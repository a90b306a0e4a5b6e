"""Tiny versions of every model: all block types of the real architecture, random weights on every path, float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from sicompiler.capture import Program, capture
from sicompiler.capture.entry import bound_method
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.compiler.planner import Planner
from sicompiler.compiler.prepare import analyse
from sicompiler.passes.manager import run_stage
from sicompiler.zoo.build import construct, randomize_
from sicompiler.zoo.family import ExampleDraw
from sicompiler.zoo.geometry import Sizes
from sicompiler.zoo.inputs import FAMILIES
from tests.zoo_decoders import CONFIGS

Call = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Tiny:
    """A tiny model.

    Attributes:
        class_name: the class of diffusers.
        config: what differs from the defaults of the class.
        latent: default latent sizes.
        text_tokens: length of the prompt.
        norm_groups: of every group norm, where the class has no configuration for it; None to leave them alone.
    """

    class_name: str
    config: Mapping[str, Any]
    latent: Sizes
    text_tokens: int = 5
    norm_groups: int | None = None


_SVD = {
    "block_out_channels": (32, 32, 64),  # multiples of 32: the class builds its norms with 32 groups
    "down_block_types": (
        "CrossAttnDownBlockSpatioTemporal",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
    ),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "num_attention_heads": 2,
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
}
_ANIMATEDIFF = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "use_motion_mid_block": True,
}

_UNET_3D = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}
_COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 5,
}
_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}
_LTX = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 16,
}
_HUNYUANVIDEO = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 2,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 4, 4),
}
_MOCHI = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "pooled_projection_dim": 8,
    "in_channels": 4,
    "text_embed_dim": 16,
    "time_embed_dim": 16,
}

TINY: Mapping[str, Tiny] = MappingProxyType(
    {
        # One image token is what the pipeline gives, but softmax over one key hides queries and keys: svd has three.
        "svd": Tiny("UNetSpatioTemporalConditionModel", _SVD, Sizes(2, 5, 17, 30), text_tokens=3, norm_groups=8),
        "svd-xt": Tiny("UNetSpatioTemporalConditionModel", _SVD, Sizes(2, 25, 9, 14), text_tokens=1, norm_groups=8),
        "animatediff": Tiny("UNetMotionModel", _ANIMATEDIFF, Sizes(2, 6, 9, 14)),
        "modelscope": Tiny("UNet3DConditionModel", _UNET_3D, Sizes(2, 6, 9, 14)),
        "i2vgenxl": Tiny("I2VGenXLUNet", _UNET_3D, Sizes(2, 6, 9, 14)),
        "cogvideox-2b": Tiny("CogVideoXTransformer3DModel", _COGVIDEOX, Sizes(2, 3, 8, 12)),
        "wan2.1-1.3b": Tiny("WanTransformer3DModel", _WAN, Sizes(2, 3, 8, 12), text_tokens=7),
        "wan2.1-14b": Tiny(
            "WanTransformer3DModel", _WAN | {"num_attention_heads": 4}, Sizes(2, 5, 6, 10), text_tokens=7
        ),
        "ltx-video": Tiny("LTXVideoTransformer3DModel", _LTX, Sizes(2, 3, 5, 6), text_tokens=7),
        "hunyuanvideo": Tiny("HunyuanVideoTransformer3DModel", _HUNYUANVIDEO, Sizes(2, 3, 8, 12), text_tokens=7),
        "mochi": Tiny("MochiTransformer3DModel", _MOCHI, Sizes(2, 3, 8, 12), text_tokens=7),
        **{
            name: Tiny(class_name, config, Sizes(*latent), norm_groups=8 if name in ("svd-vae", "mochi-vae") else None)
            for name, (class_name, config, latent) in CONFIGS.items()
        },
    }
)


def method_of(name: str) -> str:
    """The entry point of a tiny model."""
    return FAMILIES[TINY[name].class_name].method


def tiny(
    name: str,
    *,
    batch: int | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    return_dict: bool = False,
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Build a tiny model and the example inputs of one call.

    Args:
        name: a key of `TINY`.
        batch: rows of the batch, 2 by default.
        frames: LATENT frames.
        height: latent rows.
        width: latent columns.
        dtype: of weights and inputs.
        seed: of the random weights and inputs.
        return_dict: what the call asks for: diffusers' output object, or a tuple.

    Returns:
        The model in eval mode, args and kwargs.
    """
    row = TINY[name]
    latent = row.latent.replaced(batch=batch, frames=frames, height=height, width=width)
    module = construct(row.class_name, row.config, dtype)
    randomize_(module, seed)
    for child in module.modules():
        if row.norm_groups is not None and isinstance(child, torch.nn.GroupNorm):
            child.num_groups = row.norm_groups  # 32 groups of one channel would hide what is added per channel
    draw = ExampleDraw(dtype, torch.Generator().manual_seed(seed))
    args, kwargs = FAMILIES[row.class_name].make(module.config, latent, row.text_tokens, draw)
    return module, args, kwargs | {"return_dict": return_dict}


@lru_cache(maxsize=32)
def captured(name: str, **options: Any) -> tuple[Call, Program]:
    """A tiny model and the program of its entry point, captured once for all tests that only read them.

    Args:
        name: a key of `TINY`.
        options: of `tiny`.
    """
    module, args, kwargs = tiny(name, **options)
    return (module, args, kwargs), capture(module, args, kwargs, method=method_of(name))


@lru_cache(maxsize=32)
def legal(name: str) -> AnalyzedGraph:
    """The graph of a tiny model as plans see it on a CPU, once for all tests that only read it."""
    return analyze_graph(run_stage("legal", run_stage("clean", captured(name)[1])), "cpu")


@lru_cache(maxsize=6)
def prepared(name: str, **options: Any) -> tuple[Call, Program, Planner, Any]:
    """A tiny model, everything known about its entry point, and what that gives: once for all of its budgets."""
    (module, args, kwargs), program = captured(name, **options)
    planner = analyse(module, program, method=method_of(name))
    with torch.no_grad():
        return (module, args, kwargs), program, planner, bound_method(module, method_of(name))(*args, **kwargs)
