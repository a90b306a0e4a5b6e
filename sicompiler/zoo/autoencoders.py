"""Example inputs of the decoder of a VAE, as its diffusers pipeline passes them: one row per class of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sicompiler.zoo.family import Config, ExampleDraw, Family, Inputs
from sicompiler.zoo.geometry import Geometry, Sizes

DECODE = "decode"


def _frames_in_batch(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    shape = (latent.batch * latent.frames, config["latent_channels"], latent.height, latent.width)
    return (draw.normal(*shape),), {"return_dict": False}


def _temporal_decoder(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    args, kwargs = _frames_in_batch(config, latent, text_tokens, draw)
    return args, kwargs | {"num_frames": latent.frames}


def _video(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    channels = config["z_dim"] if "z_dim" in config else config["latent_channels"]
    shape = (latent.batch, channels, latent.frames, latent.height, latent.width)
    return (draw.normal(*shape),), {"return_dict": False}


def _ltx(config: Config, latent: Sizes, text_tokens: int, draw: ExampleDraw) -> Inputs:
    (latents,), kwargs = _video(config, latent, text_tokens, draw)
    time = draw.full(*[0.05] * latent.batch) if config["timestep_conditioning"] else None
    return (latents, time), kwargs


def _levels(config: Config) -> Mapping[str, int]:
    """Each level but one halves height and width."""
    levels = config.get("block_out_channels")
    return {} if levels is None else {"spatial": 2 ** (len(levels) - 1)}


def _scalings(config: Config) -> Mapping[str, int]:
    """Patches first, then levels that halve frames, height and width."""
    halved = config.get("spatio_temporal_scaling")
    if halved is None:
        return {}
    factor = 2 ** sum(map(bool, halved))
    return {"spatial": config.get("patch_size", 4) * factor, "temporal": config.get("patch_size_t", 1) * factor}


_RATIOS = {"spatial": "spatial_compression_ratio", "temporal": "temporal_compression_ratio"}
_SCALES = {"spatial": "scale_factor_spatial", "temporal": "scale_factor_temporal"}

AUTOENCODERS: Mapping[str, Family] = MappingProxyType(
    {
        "AutoencoderKL": Family(
            Geometry(8, 1, 8), Sizes(1, 16, 576, 1024), 0, _frames_in_batch, method=DECODE, derived=_levels
        ),
        "AutoencoderKLCogVideoX": Family(
            Geometry(8, 4, 8),
            Sizes(1, 49, 480, 720),
            0,
            _video,
            method=DECODE,
            geometry_keys={"temporal": "temporal_compression_ratio"},
            derived=_levels,
        ),
        "AutoencoderKLHunyuanVideo": Family(
            Geometry(8, 4, 8), Sizes(1, 65, 512, 512), 0, _video, method=DECODE, geometry_keys=_RATIOS
        ),
        "AutoencoderKLLTXVideo": Family(
            Geometry(32, 8, 32),
            Sizes(1, 121, 512, 768),
            0,
            _ltx,
            method=DECODE,
            geometry_keys=_RATIOS,
            derived=_scalings,
        ),
        "AutoencoderKLMochi": Family(Geometry(8, 6, 8), Sizes(1, 79, 480, 848), 0, _video, method=DECODE),
        "AutoencoderKLTemporalDecoder": Family(
            Geometry(8, 1, 8), Sizes(1, 14, 576, 1024), 0, _temporal_decoder, method=DECODE, derived=_levels
        ),
        "AutoencoderKLWan": Family(
            Geometry(8, 4, 8), Sizes(1, 81, 480, 832), 0, _video, method=DECODE, geometry_keys=_SCALES
        ),
    }
)
"""The classes of VAEs whose decoders can be planned."""
