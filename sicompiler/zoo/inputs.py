"""Example inputs of a denoiser, exactly as its diffusers pipeline passes them: one maker per class of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sicompiler.zoo.autoencoders import AUTOENCODERS
from sicompiler.zoo.family import Config, ExampleDraw, Family, Inputs
from sicompiler.zoo.geometry import Geometry, Sizes


def _svd(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    sample = draw.normal(latent.batch, latent.frames, config["in_channels"], latent.height, latent.width)
    return (sample, draw.timestep(1.637)), {
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["cross_attention_dim"]),
        "added_time_ids": draw.full(6, 127, 0.02).repeat(latent.batch, 1),
        "return_dict": False,
    }


def _animatediff(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    sample = draw.normal(latent.batch, config["in_channels"], latent.frames, latent.height, latent.width)
    text = draw.normal(latent.batch, text_tokens, config["cross_attention_dim"])
    return (sample, draw.timestep(981)), {
        "encoder_hidden_states": text.repeat_interleave(latent.frames, dim=0),
        "cross_attention_kwargs": None,
        "added_cond_kwargs": None,
        "return_dict": False,
    }


def _modelscope(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    sample = draw.normal(latent.batch, config["in_channels"], latent.frames, latent.height, latent.width)
    return (sample, draw.timestep(981)), {
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["cross_attention_dim"]),
        "cross_attention_kwargs": None,
        "return_dict": False,
    }


def _i2vgenxl(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    args, kwargs = _modelscope(config, latent, text_tokens, draw)
    return args, kwargs | {
        "fps": draw.timestep(16).repeat(latent.batch),
        "image_latents": draw.normal(*args[0].shape),
        "image_embeddings": draw.normal(latent.batch, 1, config["cross_attention_dim"]),
    }


def _cogvideox(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    patch, patch_t = config["patch_size"], config["patch_size_t"] or 1
    frames = -(-latent.frames // patch_t) * patch_t  # the pipeline rounds up
    rotary = None
    if config["use_rotary_positional_embeddings"]:
        positions = frames // patch_t * (latent.height // patch) * (latent.width // patch)
        angles = draw.normal(positions, config["attention_head_dim"]).float()
        rotary = (angles.cos(), angles.sin())
    return (), {
        "hidden_states": draw.normal(latent.batch, frames, config["in_channels"], latent.height, latent.width),
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["text_embed_dim"]),
        "timestep": draw.timestep(981).expand(latent.batch),
        "image_rotary_emb": rotary,
        "attention_kwargs": None,
        "return_dict": False,
    }


def _wan(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    kwargs = {
        "hidden_states": draw.normal(latent.batch, config["in_channels"], latent.frames, latent.height, latent.width),
        "timestep": draw.timestep(981).expand(latent.batch),
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["text_dim"]),
        "attention_kwargs": None,
        "return_dict": False,
    }
    if config["image_dim"] is not None:  # the image-to-video models also see CLIP's 257 image tokens
        kwargs["encoder_hidden_states_image"] = draw.normal(latent.batch, 257, config["image_dim"])
    return (), kwargs


def _wan_expanded(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    """A step of its own for every token, as where the first frame is given and stays (`expand_timesteps`)."""
    args, kwargs = _wan(config, latent, text_tokens, draw)
    time, rows, columns = config["patch_size"]
    tokens = latent.frames // time * (latent.height // rows) * (latent.width // columns)
    return args, kwargs | {"timestep": draw.timestep(981.0).expand(latent.batch, tokens)}


def _ltx(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    positions = latent.frames * latent.height * latent.width
    return (), {
        "hidden_states": draw.normal(latent.batch, positions, config["in_channels"]),
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["caption_channels"]),
        "timestep": draw.timestep(981.0).expand(latent.batch),
        "encoder_attention_mask": draw.valid(latent.batch, text_tokens),
        "num_frames": latent.frames,
        "height": latent.height,
        "width": latent.width,
        "rope_interpolation_scale": (8 / 25, 32, 32),  # latent frames to seconds, latent rows and columns to pixels
        "attention_kwargs": None,
        "return_dict": False,
    }


def _hunyuanvideo(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    return (), {
        "hidden_states": draw.normal(latent.batch, config["in_channels"], latent.frames, latent.height, latent.width),
        "timestep": draw.timestep(981.0).expand(latent.batch),
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["text_embed_dim"]),
        "encoder_attention_mask": draw.valid(latent.batch, text_tokens).to(draw.dtype),
        "pooled_projections": draw.normal(latent.batch, config["pooled_projection_dim"]),
        "guidance": draw.full(6000.0).repeat(latent.batch) if config["guidance_embeds"] else None,
        "attention_kwargs": None,
        "return_dict": False,
    }


def _mochi(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    return (), {
        "hidden_states": draw.normal(latent.batch, config["in_channels"], latent.frames, latent.height, latent.width),
        "encoder_hidden_states": draw.normal(latent.batch, text_tokens, config["text_embed_dim"]),
        "timestep": draw.timestep(19.0).expand(latent.batch).to(draw.dtype),
        "encoder_attention_mask": draw.valid(latent.batch, text_tokens),
        "attention_kwargs": None,
        "return_dict": False,
    }


_SAMPLE = {"frames": "sample_frames", "height": "sample_height", "width": "sample_width"}
_SQUARE = {"height": "sample_size", "width": "sample_size"}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "CogVideoXTransformer3DModel": Family(
            Geometry(8, 4, 16), Sizes(2, 49, 480, 720), 226, _cogvideox, _SAMPLE, tables=True, patch_key="patch_size"
        ),
        "HunyuanVideoTransformer3DModel": Family(
            Geometry(8, 4, 16), Sizes(1, 129, 720, 1280), 256, _hunyuanvideo, patch_key="patch_size"
        ),
        "I2VGenXLUNet": Family(Geometry(8, 1, 8), Sizes(2, 16, 704, 1280), 77, _i2vgenxl, levels=4),
        "LTXVideoTransformer3DModel": Family(Geometry(32, 8, 32), Sizes(2, 121, 512, 768), 128, _ltx),
        "MochiTransformer3DModel": Family(
            Geometry(8, 6, 16), Sizes(2, 79, 480, 848), 256, _mochi, patch_key="patch_size"
        ),
        "UNet3DConditionModel": Family(Geometry(8, 1, 8), Sizes(2, 16, 256, 256), 77, _modelscope, _SQUARE, levels=4),
        "UNetMotionModel": Family(
            Geometry(8, 1, 8, max_frames_key="motion_max_seq_length"),
            Sizes(2, 16, 576, 1024),
            77,
            _animatediff,
            _SQUARE,
            levels=4,
        ),
        "UNetSpatioTemporalConditionModel": Family(
            Geometry(8, 1, 8), Sizes(2, 14, 576, 1024), 1, _svd, {"frames": "num_frames"}, levels=4
        ),
        "WanTransformer3DModel": Family(
            Geometry(8, 4, 16),
            Sizes(1, 81, 480, 832),
            512,
            _wan,
            patch_key="patch_size",
            latent_channels=("out_channels", 16),
            variants={"expand_timesteps": _wan_expanded},
        ),
        **AUTOENCODERS,
    }
)
