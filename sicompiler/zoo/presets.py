"""Full-size architectures by name, built from configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sicompiler.zoo.geometry import Sizes


@dataclass(frozen=True)
class Preset:
    """One full-size architecture.

    Attributes:
        name: what the user says.
        class_name: the class of diffusers.
        parameters: how many, in millions.
        config: what differs from the defaults of the class.
        sizes: default sizes in pixels; None for those its configuration or class says.
    """

    name: str
    class_name: str
    parameters: float
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sizes | None = None


_SVD = {
    "num_attention_heads": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "in_channels": 8,
    "sample_size": 96,
}
_ANIMATEDIFF = {
    "cross_attention_dim": 768,
    "num_attention_heads": 8,
    "motion_num_attention_heads": 8,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
}

_WAN_SMALL = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}

_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_SD_VAE = _KL | {"up_block_types": ("UpDecoderBlock2D",) * 4, "sample_size": 512}

_ROWS = (
    Preset("svd", "UNetSpatioTemporalConditionModel", 1524.6, _SVD | {"num_frames": 14}),
    Preset("svd-xt", "UNetSpatioTemporalConditionModel", 1524.6, _SVD | {"num_frames": 25}),
    Preset("animatediff", "UNetMotionModel", 1312.7, _ANIMATEDIFF),
    Preset("modelscope", "UNet3DConditionModel", 1411.2, {"cross_attention_dim": 1024, "attention_head_dim": 64}),
    Preset("i2vgenxl", "I2VGenXLUNet", 1420.5),
    Preset("cogvideox-2b", "CogVideoXTransformer3DModel", 1693.8),
    Preset("wan2.1-1.3b", "WanTransformer3DModel", 1419.0, _WAN_SMALL),
    Preset("wan2.1-14b", "WanTransformer3DModel", 14288.5, sizes=Sizes(1, 81, 720, 1280)),
    Preset("ltx-video", "LTXVideoTransformer3DModel", 1923.4),
    Preset("hunyuanvideo", "HunyuanVideoTransformer3DModel", 12821.0),
    Preset("mochi", "MochiTransformer3DModel", 10027.7),
    Preset("svd-vae", "AutoencoderKLTemporalDecoder", 97.7, _KL),
    Preset("sd-vae", "AutoencoderKL", 83.7, _SD_VAE),
    Preset("wan-vae", "AutoencoderKLWan", 126.9),
    Preset("cogvideox-vae", "AutoencoderKLCogVideoX", 215.6),
    Preset("hunyuanvideo-vae", "AutoencoderKLHunyuanVideo", 246.5),
    Preset("ltx-vae", "AutoencoderKLLTXVideo", 419.2),
    Preset("mochi-vae", "AutoencoderKLMochi", 459.7),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({row.name: row for row in _ROWS})


def known_presets() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(PRESETS)
