"""Tiny diffusers pipelines with random weights: every component of the real one, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from sicompiler.models.build import construct, randomize_
from tests.zoo import TINY

TEXT = 16  # width of prompts in the zoo's tiny denoisers
TOKENS = 8


def component(class_name: str, config: Mapping[str, Any], dtype: torch.dtype, seed: int = 0) -> Any:
    """A model of diffusers with random weights."""
    module = construct(class_name, config, dtype)
    randomize_(module, seed)
    return module


def denoiser(name: str, dtype: torch.dtype, **changes: Any) -> Any:
    """A tiny denoiser of the zoo."""
    row = TINY[name]
    module = component(row.class_name, {**row.config, **changes}, dtype)
    for child in module.modules():
        if row.norm_groups is not None and isinstance(child, nn.GroupNorm):
            child.num_groups = row.norm_groups
    return module


def softened(vae: Any, name: str, by: float = 0.2) -> Any:
    """A VAE whose last layer gives little: clipped frames would be equal whatever is computed."""
    with torch.no_grad():
        for parameter in vae.get_submodule(name).parameters():
            parameter.mul_(by)
    return vae


def tokenizer() -> Any:
    """A tokenizer of whole words that knows five of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "cat", "runs", "dog", "sleeps"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=TOKENS,
    )  # fmt: skip


def finished(module: Any, dtype: torch.dtype) -> Any:
    """A model of transformers, ready to run."""
    module = module.to(dtype).eval()
    randomize_(module, 3)
    return module


def clip_text(dtype: torch.dtype) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=16, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=TEXT, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return finished(CLIPTextModel(config), dtype)


def clip_vision(dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=TEXT, intermediate_size=32, projection_dim=TEXT, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return finished(CLIPVisionModelWithProjection(config), dtype)


def feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size=32, crop_size=32)


_SVD_UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
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


def vae_2d(dtype: torch.dtype) -> Any:
    return component(
        "AutoencoderKL",
        {
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
        },
        dtype,
    )


def animatediff(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    adapter = component(
        "MotionAdapter",
        {"block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_norm_num_groups": 4,
         "motion_num_attention_heads": 2},
        dtype,
    )  # fmt: skip
    pipe = AnimateDiffPipeline(
        vae=softened(vae_2d(dtype), "decoder.conv_out"),
        text_encoder=clip_text(dtype),
        tokenizer=tokenizer(),
        unet=denoiser("animatediff", dtype),
        motion_adapter=adapter,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )
    return quiet(pipe)


def animatediff_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "prompt": "a cat runs", "negative_prompt": "dog", "height": 16, "width": 24, "num_frames": 3,
        "num_inference_steps": 2, "output_type": "pt",
    }  # fmt: skip


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


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


def t5(dtype: torch.dtype, *, per_layer_bias: bool = False) -> Any:
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 16, "d_model": TEXT, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = UMT5EncoderModel(UMT5Config(**sizes)) if per_layer_bias else T5EncoderModel(T5Config(**sizes))
    return finished(model, dtype)


def wan(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    vae = component(
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
         "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        dtype,
    )  # fmt: skip
    pipe = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(dtype, per_layer_bias=True),
        vae=softened(vae, "decoder.conv_out"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=denoiser("wan2.1-1.3b", dtype),
    )
    return quiet(pipe)


def wan_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "prompt": "a cat runs", "negative_prompt": "dog", "height": 32, "width": 48, "num_frames": 5,
        "num_inference_steps": 2, "max_sequence_length": TOKENS, "output_type": "pt",
    }  # fmt: skip


def cogvideox(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    vae = component(
        "AutoencoderKLCogVideoX",
        {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
        dtype,
    )
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(dtype),
        vae=softened(vae, "decoder.conv_out", 0.02),
        transformer=denoiser("cogvideox-2b", dtype, max_text_seq_length=TOKENS, sample_height=4, sample_width=6),
        scheduler=CogVideoXDDIMScheduler(),
    )
    return quiet(pipe)


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


Call = Callable[[torch.dtype], dict[str, Any]]

PIPELINES: Mapping[str, tuple[Callable[[torch.dtype], Any], Call]] = MappingProxyType(
    {
        "StableVideoDiffusionPipeline": (svd, svd_call),
        "AnimateDiffPipeline": (animatediff, animatediff_call),
        "TextToVideoSDPipeline": (modelscope, animatediff_call),
        "WanPipeline": (wan, wan_call),
        "CogVideoXPipeline": (cogvideox, lambda dtype: {**wan_call(dtype), "num_frames": 9}),
        "LTXPipeline": (ltx, lambda dtype: {**wan_call(dtype), "width": 64, "num_frames": 9}),
        "HunyuanVideoPipeline": (hunyuanvideo, hunyuanvideo_call),
    }
)


def run(pipe: Any, call: Mapping[str, Any], seed: int = 0) -> Any:
    """The frames of a call."""
    return pipe(**call, generator=torch.Generator().manual_seed(seed)).frames
