"""Tiny pipelines whose text encoder is a language model, with random weights: every component of the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from tests.pipeline_parts import (
    TEXT,
    TOKENS,
    clip_text,
    component,
    denoiser,
    finished,
    image,
    quiet,
    softened,
    tokenizer,
)
from tests.pipelines_transformers import hunyuanvideo, hunyuanvideo_call

_LAYERS: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "pad_token_id": 0,
    }
)  # fmt: skip


def llama(dtype: torch.dtype, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaModel

    return finished(LlamaModel(LlamaConfig(**{**_LAYERS, "vocab_size": 16, **changes})), dtype)


def gemma2(dtype: torch.dtype, **changes: Any) -> Any:
    """Every other layer sees a window of tokens only, and keeps no more of them."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**{**_LAYERS, "vocab_size": 16, "head_dim": 8, "sliding_window": 6, **changes})
    return finished(Gemma2Model(config), dtype)


def gemma3(dtype: torch.dtype) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={**_LAYERS, "vocab_size": 16, "head_dim": 8, "sliding_window": 4},
        vision_config={"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4, boi_token_index=12, eoi_token_index=13, image_token_index=14,
    )  # fmt: skip
    return finished(Gemma3ForConditionalGeneration(config), dtype)


def _rotary(sizes: tuple[int, int, int]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": list(sizes), "rope_theta": 10000.0}}


def qwen2_vl(dtype: torch.dtype) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={**_LAYERS, "vocab_size": 32, **_rotary((1, 1, 2))},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": TEXT, "num_heads": 2, "patch_size": 4},
        image_token_id=26, video_token_id=27, vision_start_token_id=28, vision_end_token_id=29,
    )  # fmt: skip
    return finished(Qwen2VLForConditionalGeneration(config), dtype)


def qwen25_vl(dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={**_LAYERS, "vocab_size": 32, **_rotary((1, 1, 2))},
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": TEXT,
                       "num_heads": 2, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
        image_token_id=26, video_token_id=27, vision_start_token_id=28, vision_end_token_id=29,
    )  # fmt: skip
    return finished(Qwen2_5_VLForConditionalGeneration(config), dtype)


def llava(dtype: torch.dtype) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, projection_dim=8, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(**_LAYERS, vocab_size=32)
    config = LlavaConfig(vision_config=vision, text_config=text, pad_token_id=0, image_token_index=20)
    return finished(LlavaForConditionalGeneration(config), dtype)


def hunyuan_vae(dtype: torch.dtype, **changes: Any) -> Any:
    sizes = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return softened(component("AutoencoderKLHunyuanVideo", {**sizes, **changes}, dtype), "decoder.conv_out")


def hunyuanvideo_image(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline
    from transformers import CLIPImageProcessor

    transformer = denoiser(
        "hunyuanvideo", dtype, in_channels=9, pooled_projection_dim=TEXT, image_condition_type="latent_concat",
        guidance_embeds=False,
    )  # fmt: skip
    pipe = HunyuanVideoImageToVideoPipeline(
        text_encoder=llava(dtype),
        tokenizer=tokenizer(),
        transformer=transformer,
        vae=hunyuan_vae(dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=clip_text(dtype),
        tokenizer_2=tokenizer(),
        image_processor=CLIPImageProcessor(size=16, crop_size=16),
    )
    return quiet(pipe)


def hunyuanvideo_image_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    template = {"template": "{}", "crop_start": 0, "image_emb_len": 4, "image_emb_start": 5, "image_emb_end": 9}
    call = {**hunyuanvideo_call(dtype), "prompt_template": template, "max_sequence_length": 12}
    return {**call, "image": image(48, 32), "height": 32, "width": 48}


def processor() -> Any:
    """A tokenizer that is called as a processor of texts, images and videos."""
    from transformers import PreTrainedTokenizerFast

    class Processor(PreTrainedTokenizerFast):  # type: ignore[misc]
        def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **options: Any) -> Any:
            return super().__call__(text=text, **options)

    plain = tokenizer()
    return Processor(
        tokenizer_object=plain.backend_tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", model_max_length=256,
    )  # fmt: skip


def kandinsky5(dtype: torch.dtype = torch.float32) -> Any:
    """Its transformer embeds time steps in float32 and does not cast them: it runs in no other dtype on a CPU."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline

    transformer = component(
        "Kandinsky5Transformer3DModel",
        {"in_visual_dim": 4, "in_text_dim": TEXT, "in_text_dim2": TEXT, "time_dim": 16, "out_visual_dim": 4,
         "patch_size": (1, 2, 2), "model_dim": 24, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 1,
         "axes_dims": (4, 4, 4), "visual_cond": False},
        dtype,
    )  # fmt: skip
    pipe = Kandinsky5T2VPipeline(
        transformer=transformer,
        vae=hunyuan_vae(dtype),
        text_encoder=qwen25_vl(dtype),
        tokenizer=processor(),
        text_encoder_2=clip_text(dtype),
        tokenizer_2=tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = "dog sleeps {}", 2
    return quiet(pipe)


def kandinsky5_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "prompt": "a cat runs", "negative_prompt": "dog", "height": 32, "width": 48, "num_frames": 5,
        "num_inference_steps": 2, "max_sequence_length": 16, "output_type": "pt",
    }  # fmt: skip


def easyanimate(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import EasyAnimatePipeline, FlowMatchEulerDiscreteScheduler

    blocks = ("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3)
    vae = component(
        "AutoencoderKLMagvit",
        {"down_block_types": blocks, "up_block_types": tuple(name.replace("Down", "Up") for name in blocks),
         "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
         "spatial_group_norm": False},
        dtype,
    )  # fmt: skip
    transformer = component(
        "EasyAnimateTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
         "time_embed_dim": 4, "text_embed_dim": TEXT, "num_layers": 1, "sample_width": 16, "sample_height": 16,
         "patch_size": 2},
        dtype,
    )  # fmt: skip
    words = processor()
    words.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    pipe = EasyAnimatePipeline(
        vae=softened(vae, "decoder.conv_out"),
        text_encoder=qwen2_vl(dtype),
        tokenizer=words,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return quiet(pipe)


def easyanimate_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    call = kandinsky5_call(dtype)
    del call["max_sequence_length"]  # 256 tokens always
    return {**call, "height": 16, "width": 16}


def sana_video(dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaVideoPipeline

    vae = component(
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
         "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        dtype,
    )  # fmt: skip
    transformer = component(
        "SanaVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
         "caption_channels": TEXT, "mlp_ratio": 2.0, "sample_size": 8, "patch_size": (1, 2, 2),
         "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32},
        dtype,
    )  # fmt: skip
    pipe = SanaVideoPipeline(
        tokenizer=tokenizer(),
        text_encoder=gemma2(dtype),
        vae=softened(vae, "decoder.conv_out"),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return quiet(pipe)


def sana_video_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    call = kandinsky5_call(dtype)
    frames = call.pop("num_frames")
    return {
        **call, "negative_prompt": "dog sleeps a cat", "width": 32, "frames": frames, "max_sequence_length": TOKENS,
        "complex_human_instruction": [], "use_resolution_binning": False,
    }  # fmt: skip


def ltx2(dtype: torch.dtype = torch.float32) -> Any:
    """With sound: its decoder and vocoder run once the frames are decoded."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    text_encoder = gemma3(dtype)
    transformer = component(
        "LTX2VideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 2,
         "attention_head_dim": 8, "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4,
         "audio_num_attention_heads": 2, "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8,
         "num_layers": 2, "qk_norm": "rms_norm_across_heads", "caption_channels": TEXT,
         "rope_double_precision": False, "rope_type": "split"},
        dtype,
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=TEXT, text_proj_in_factor=_LAYERS["num_hidden_layers"] + 1,
        video_connector_num_attention_heads=2, video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
    )  # fmt: skip
    vae = component(
        "AutoencoderKLLTX2Video",
        {"latent_channels": 4, "block_out_channels": (8,), "decoder_block_out_channels": (8,),
         "layers_per_block": (1,), "decoder_layers_per_block": (1, 1), "spatio_temporal_scaling": (True,),
         "decoder_spatio_temporal_scaling": (True,), "decoder_inject_noise": (False, False),
         "downsample_type": ("spatial",), "upsample_residual": (False,), "upsample_factor": (1,),
         "timestep_conditioning": False, "patch_size": 1, "patch_size_t": 1, "encoder_causal": True,
         "decoder_causal": False},
        dtype,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio_vae = component(
        "AutoencoderKLLTX2Audio",
        {"base_channels": 4, "output_channels": 2, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": None,
         "in_channels": 2, "resolution": 32, "latent_channels": 2, "norm_type": "pixel", "causality_axis": "height",
         "dropout": 0.0, "mid_block_add_attention": False, "sample_rate": 16000, "mel_hop_length": 160,
         "is_causal": True, "mel_bins": 8},
        dtype,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000,
    )  # fmt: skip
    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=softened(vae, "decoder.conv_out"),
        audio_vae=audio_vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        connectors=finished(connectors, dtype),
        transformer=transformer,
        vocoder=finished(vocoder, dtype),
    )
    return quiet(pipe)


def ltx2_call(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        **kandinsky5_call(dtype), "height": 32, "width": 32, "frame_rate": 25.0, "max_sequence_length": TOKENS,
        "guidance_scale": 2.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
        "audio_guidance_scale": 2.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None, "use_cross_timestep": False,
    }  # fmt: skip


LANGUAGE_PIPELINES: Mapping[str, tuple[Callable[[torch.dtype], Any], Callable[[torch.dtype], dict[str, Any]]]] = (
    MappingProxyType(
        {
            "HunyuanVideoPipeline": (hunyuanvideo, hunyuanvideo_call),
            "HunyuanVideoImageToVideoPipeline": (hunyuanvideo_image, hunyuanvideo_image_call),
            "LTX2Pipeline": (ltx2, ltx2_call),
            "Kandinsky5T2VPipeline": (lambda dtype: kandinsky5(), kandinsky5_call),
            "EasyAnimatePipeline": (easyanimate, easyanimate_call),
            "SanaVideoPipeline": (sana_video, sana_video_call),
        }
    )
)
"""How to make each, and a call of it; named as in `sicompiler.supported_pipelines()`."""
