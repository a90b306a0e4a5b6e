"""Tiny pipelines whose denoiser is a transformer, with random weights: every component of the real one."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipeline_parts import (
    TEXT,
    TOKENS,
    clip_text,
    clip_vision,
    component,
    denoiser,
    feature_extractor,
    finished,
    image,
    quiet,
    softened,
    t5,
    tokenizer,
)


def wan_parts(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    vae = component(
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
         "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        dtype,
    )  # fmt: skip
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(dtype, per_layer_bias=True),
        "vae": softened(vae, "decoder.conv_out"),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "transformer": denoiser("wan2.1-1.3b", dtype, **changes),
    }


def wan(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import WanPipeline

    return quiet(WanPipeline(**wan_parts(dtype)))


def wan_two(dtype: torch.dtype = torch.float32) -> Any:
    """As Wan 2.2: one transformer for the first of two steps, another for the second."""
    from diffusers import WanPipeline

    second = denoiser("wan2.1-1.3b", dtype, num_layers=1)
    return quiet(WanPipeline(**wan_parts(dtype), transformer_2=second, boundary_ratio=0.9))


def wan_image(dtype: torch.dtype = torch.float32) -> Any:
    """As Wan 2.1: the image goes in by its latents and by the tokens of its encoder."""
    from diffusers import WanImageToVideoPipeline

    parts = wan_parts(dtype, in_channels=12, image_dim=TEXT, added_kv_proj_dim=24)
    encoder = clip_vision(dtype, projection=False)
    return quiet(WanImageToVideoPipeline(**parts, image_encoder=encoder, image_processor=feature_extractor()))


def wan_image_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The prompt comes as embeddings: for words this pipeline needs the package ftfy, which nothing else does."""
    call = wan_call(dtype)
    del call["prompt"], call["negative_prompt"]
    draw = torch.Generator().manual_seed(4)
    both = torch.randn(2, 1, 512, TEXT, dtype=dtype, generator=draw)  # 512 is written in the attention
    return {**call, "prompt_embeds": both[0], "negative_prompt_embeds": both[1], "image": image(48, 32)}


def wan_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "prompt": "a cat runs", "negative_prompt": "dog", "height": 32, "width": 48, "num_frames": 5,
        "num_inference_steps": 2, "max_sequence_length": TOKENS, "output_type": "pt",
    }  # fmt: skip


def cogvideox_parts(dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    from diffusers import CogVideoXDDIMScheduler

    vae = component(
        "AutoencoderKLCogVideoX",
        {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
        dtype,
    )
    sizes = {"max_text_seq_length": TOKENS, "sample_height": 4, "sample_width": 6}
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(dtype),
        "vae": softened(vae, "decoder.conv_out", 0.02),
        "transformer": denoiser("cogvideox-2b", dtype, **sizes, **changes),
        "scheduler": CogVideoXDDIMScheduler(),
    }


def cogvideox(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import CogVideoXPipeline

    return quiet(CogVideoXPipeline(**cogvideox_parts(dtype)))


def cogvideox_image(dtype: torch.dtype = torch.float32) -> Any:
    """As the model of 5 B parameters: latents of the image beside the noise, rotary and learned positions."""
    from diffusers import CogVideoXImageToVideoPipeline

    parts = cogvideox_parts(
        dtype, in_channels=8, use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True
    )
    return quiet(CogVideoXImageToVideoPipeline(**parts))


def ltx(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    vae = component(
        "AutoencoderKLLTXVideo",
        {"latent_channels": 8, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
         "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1), "patch_size": 1,
         "spatio_temporal_scaling": (True, True, False, False),
         "decoder_spatio_temporal_scaling": (True, True, False, False)},
        dtype,
    )  # fmt: skip
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=softened(vae, "decoder.conv_out"),
        text_encoder=t5(dtype),
        tokenizer=tokenizer(),
        transformer=denoiser("ltx-video", dtype),
    )
    return quiet(pipe)


def hunyuanvideo(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
    from transformers import LlamaConfig, LlamaModel

    llama = LlamaConfig(
        vocab_size=16, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    vae = component(
        "AutoencoderKLHunyuanVideo",
        {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        dtype,
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=finished(LlamaModel(llama), dtype),
        tokenizer=tokenizer(),
        transformer=denoiser("hunyuanvideo", dtype, pooled_projection_dim=TEXT, guidance_embeds=True),
        vae=softened(vae, "decoder.conv_out"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=clip_text(dtype),
        tokenizer_2=tokenizer(),
    )
    return quiet(pipe)


def hunyuanvideo_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "prompt": "a cat runs", "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2,
        "max_sequence_length": TOKENS, "prompt_template": {"template": "{}", "crop_start": 0}, "output_type": "pt",
    }  # fmt: skip


def mochi(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline

    vae = component(
        "AutoencoderKLMochi",
        {"encoder_block_out_channels": (32, 32, 32, 32), "decoder_block_out_channels": (32, 32, 32, 32),
         "layers_per_block": (1, 1, 1, 1, 1), "latent_channels": 12},
        dtype,
    )  # fmt: skip
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=softened(vae, "decoder.proj_out", 0.02),
        text_encoder=t5(dtype),
        tokenizer=tokenizer(),
        transformer=denoiser("mochi", dtype, in_channels=12),  # 12 is written in the pipeline
    )
    return quiet(pipe)


def mochi_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {**wan_call(dtype), "num_frames": 7, "num_inference_steps": 4}
