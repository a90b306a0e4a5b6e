"""Tiny diffusers pipelines with random weights: every component of the real one, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from tests.pipeline_parts import (
    clip_text,
    clip_vision,
    component,
    denoiser,
    feature_extractor,
    image,
    quiet,
    softened,
    tokenizer,
    vae_2d,
)
from tests.pipelines_llm import LANGUAGE_PIPELINES
from tests.pipelines_transformers import (
    cogvideox,
    cogvideox_image,
    ltx,
    mochi,
    mochi_call,
    wan,
    wan_call,
    wan_image,
    wan_image_call,
    wan_two,
)

_SVD_UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}
_ANIMATEDIFF_UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
}


def svd(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline

    vae = component(
        "AutoencoderKLTemporalDecoder",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
            "layers_per_block": 1,
        },
        dtype,
    )
    pipe = StableVideoDiffusionPipeline(
        vae=softened(vae, "decoder.time_conv_out"),
        image_encoder=clip_vision(dtype),
        unet=denoiser("svd", dtype, in_channels=8, **_SVD_UNET),
        scheduler=EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002,
            sigma_max=700.0,
        ),
        feature_extractor=feature_extractor(),
    )  # fmt: skip
    return quiet(pipe)


def svd_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return {"image": image, "height": 32, "width": 24, "num_frames": 3, "num_inference_steps": 2, "output_type": "pt"}


def animatediff_parts(dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import DDIMScheduler

    adapter = component(
        "MotionAdapter",
        {"block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_norm_num_groups": 4,
         "motion_num_attention_heads": 2},
        dtype,
    )  # fmt: skip
    return {
        "vae": softened(vae_2d(dtype), "decoder.conv_out"),
        "text_encoder": clip_text(dtype),
        "tokenizer": tokenizer(),
        "unet": denoiser("animatediff", dtype, **_ANIMATEDIFF_UNET),
        "motion_adapter": adapter,
        "scheduler": DDIMScheduler(beta_schedule="linear", clip_sample=False),
    }


def animatediff(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import AnimateDiffPipeline

    return quiet(AnimateDiffPipeline(**animatediff_parts(dtype)))


def animatediff_controlnet(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import AnimateDiffControlNetPipeline

    controlnet = component(
        "ControlNetModel",
        {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "attention_head_dim": 2, "conditioning_embedding_out_channels": (4, 8)},
        dtype,
        seed=1,
    )  # fmt: skip
    return quiet(AnimateDiffControlNetPipeline(**animatediff_parts(dtype), controlnet=controlnet))


def animatediff_controlnet_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {**animatediff_call(dtype), "conditioning_frames": [image(24, 16, seed) for seed in range(3)]}


def animatediff_video(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import AnimateDiffVideoToVideoPipeline

    return quiet(AnimateDiffVideoToVideoPipeline(**animatediff_parts(dtype)))


def animatediff_video_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    call = animatediff_call(dtype)
    del call["num_frames"]  # those of the video
    return {**call, "video": [image(24, 16, seed) for seed in range(3)], "num_inference_steps": 4, "strength": 0.5}


def animatediff_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "prompt": "a cat runs", "negative_prompt": "dog", "height": 16, "width": 24, "num_frames": 3,
        "num_inference_steps": 2, "output_type": "pt",
    }  # fmt: skip


def modelscope(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import DDIMScheduler, TextToVideoSDPipeline

    pipe = TextToVideoSDPipeline(
        vae=softened(vae_2d(dtype), "decoder.conv_out"),
        text_encoder=clip_text(dtype),
        tokenizer=tokenizer(),
        unet=denoiser("modelscope", dtype),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )
    return quiet(pipe)


def i2vgenxl(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import DDIMScheduler, I2VGenXLPipeline

    pipe = I2VGenXLPipeline(
        vae=softened(vae_2d(dtype), "decoder.conv_out"),
        text_encoder=clip_text(dtype, nested=True),
        tokenizer=tokenizer(),
        image_encoder=clip_vision(dtype),
        feature_extractor=feature_extractor(),
        unet=denoiser("i2vgenxl", dtype),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )
    return quiet(pipe)


def i2vgenxl_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {**animatediff_call(dtype), "image": image(24, 16)}


Call = Callable[[torch.dtype], dict[str, Any]]

PIPELINES: Mapping[str, tuple[Callable[[torch.dtype], Any], Call]] = MappingProxyType(
    {
        "StableVideoDiffusionPipeline": (svd, svd_call),
        "AnimateDiffPipeline": (animatediff, animatediff_call),
        "AnimateDiffControlNetPipeline": (animatediff_controlnet, animatediff_controlnet_call),
        "AnimateDiffVideoToVideoPipeline": (animatediff_video, animatediff_video_call),
        "TextToVideoSDPipeline": (modelscope, animatediff_call),
        "I2VGenXLPipeline": (i2vgenxl, i2vgenxl_call),
        "CogVideoXPipeline": (cogvideox, lambda dtype: {**wan_call(dtype), "num_frames": 9}),
        "CogVideoXImageToVideoPipeline": (
            cogvideox_image,
            lambda dtype: {**wan_call(dtype), "num_frames": 9, "image": image(48, 32)},
        ),
        "WanPipeline": (wan, lambda dtype: {**wan_call(dtype), "num_frames": 6}),  # it makes 5 of them, and says so
        "WanPipeline, two transformers": (wan_two, wan_call),
        "WanImageToVideoPipeline": (wan_image, wan_image_call),
        "LTXPipeline": (ltx, lambda dtype: {**wan_call(dtype), "width": 64, "num_frames": 9}),
        "MochiPipeline": (mochi, mochi_call),
        **LANGUAGE_PIPELINES,
    }
)
"""How to make each, and a call of it; named as in `sicompiler.supported_pipelines()`."""


def run(pipe: Any, call: Mapping[str, Any], seed: int = 0) -> Any:
    """The frames of a call."""
    torch.manual_seed(seed)  # some draw from torch's own generator, whatever they are given
    return pipe(**call, generator=torch.Generator().manual_seed(seed)).frames
