"""Tiny configurations of every VAE: all block types of the real decoder and encoder, few channels and layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# The class builds its norms with 32 groups, so channels are multiples of 32.
TEMPORAL = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "layers_per_block": 2,  # with one, the class skips its attention
}
KL = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
WAN = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
}
COGVIDEOX = {
    "block_out_channels": (8, 16, 16, 16),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_height": 64,
    "sample_width": 96,
}
HUNYUANVIDEO = {
    "block_out_channels": (8, 16, 16, 16),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
LTX = {
    "block_out_channels": (8, 8, 16, 16),
    "decoder_block_out_channels": (8, 8, 16, 16),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "latent_channels": 8,
}
# Here too, norms of 32 groups.
MOCHI = {
    "encoder_block_out_channels": (32, 32, 64, 64),
    "decoder_block_out_channels": (32, 32, 64, 64),
    "layers_per_block": (1, 1, 1, 1, 1),
    "latent_channels": 4,
}

CONFIGS: Mapping[str, tuple[str, Mapping[str, Any], tuple[int, int, int, int]]] = MappingProxyType(
    {
        "svd-vae": ("AutoencoderKLTemporalDecoder", TEMPORAL, (1, 5, 7, 12)),
        "sd-vae": ("AutoencoderKL", KL, (1, 6, 9, 14)),
        "wan-vae": ("AutoencoderKLWan", WAN, (1, 3, 6, 10)),
        "cogvideox-vae": ("AutoencoderKLCogVideoX", COGVIDEOX, (1, 5, 4, 6)),
        "hunyuanvideo-vae": ("AutoencoderKLHunyuanVideo", HUNYUANVIDEO, (1, 6, 4, 6)),
        "ltx-vae": ("AutoencoderKLLTXVideo", LTX, (1, 3, 3, 4)),
        "mochi-vae": ("AutoencoderKLMochi", MOCHI, (1, 2, 4, 6)),
    }
)
"""Class, configuration and latent sizes (batch, frames, height, width) of each."""
