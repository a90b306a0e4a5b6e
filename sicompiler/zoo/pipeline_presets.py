"""Whole pipelines by name: which components they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sicompiler.zoo import encoders
from sicompiler.zoo.encoders import Encoder


@dataclass(frozen=True)
class PipelinePreset:
    """A whole pipeline.

    Attributes:
        name: what the user says.
        pipeline: its class of diffusers.
        denoiser: a preset, or the folder of a component.
        component: the name of the denoiser in the pipeline.
        encoders: what encodes the prompt and the image.
        vae: a preset, or the folder of a component.
        idle: name, class and configuration of components that are registered but never run.
        encode: the image goes through `vae.encode`.
        upcast: in float32, where the pipeline is in float16.
        decoded: the most frames that go through `vae.decode` at once; None for all.
        more: further denoisers, by name, each the folder of a component.
        unplanned: calls that happen, but that nothing is known of: label, and why.
    """

    name: str
    pipeline: str
    denoiser: str
    component: str
    encoders: tuple[Encoder, ...]
    vae: str
    idle: tuple[tuple[str, str, Mapping[str, Any]], ...] = ()
    encode: bool = False
    upcast: bool = False
    decoded: int | None = None
    more: tuple[tuple[str, str], ...] = ()
    unplanned: tuple[tuple[str, str], ...] = ()


def _svd(denoiser: str) -> PipelinePreset:
    image = (encoders.open_clip_image(),)
    name = f"{denoiser}-pipeline"
    return PipelinePreset(
        name, "StableVideoDiffusionPipeline", denoiser, "unet", image, "svd-vae", encode=True, upcast=True
    )


_ROWS = (
    _svd("svd"),
    _svd("svd-xt"),
    PipelinePreset(
        "animatediff-pipeline",
        "AnimateDiffPipeline",
        "animatediff",
        "unet",
        (encoders.clip_text(),),
        "sd-vae",
        (("motion_adapter", "MotionAdapter", {"use_motion_mid_block": True}),),
        decoded=16,
    ),
    PipelinePreset(
        "modelscope-pipeline",
        "TextToVideoSDPipeline",
        "modelscope",
        "unet",
        (encoders.open_clip_text(),),
        "sd-vae",
    ),
    PipelinePreset(
        "i2vgenxl-pipeline",
        "I2VGenXLPipeline",
        "i2vgenxl",
        "unet",
        (encoders.open_clip_text(), encoders.open_clip_image()),
        "sd-vae",
        encode=True,
        decoded=1,
    ),
    PipelinePreset(
        "cogvideox-2b-pipeline",
        "CogVideoXPipeline",
        "cogvideox-2b",
        "transformer",
        (encoders.t5_xxl(226),),
        "cogvideox-vae",
    ),
    PipelinePreset(
        "wan2.1-1.3b-pipeline",
        "WanPipeline",
        "wan2.1-1.3b",
        "transformer",
        (encoders.umt5_xxl(),),
        "wan-vae",
    ),
    PipelinePreset(
        "ltx-video-pipeline",
        "LTXPipeline",
        "ltx-video",
        "transformer",
        (encoders.t5_xxl(128),),
        "ltx-vae",
    ),
    PipelinePreset(
        "hunyuanvideo-pipeline",
        "HunyuanVideoPipeline",
        "hunyuanvideo",
        "transformer",
        (encoders.llama_8b(), encoders.clip_text("text_encoder_2")),
        "hunyuanvideo-vae",
    ),
    PipelinePreset(
        "mochi-pipeline",
        "MochiPipeline",
        "mochi",
        "transformer",
        (encoders.t5_xxl(256, mask=True),),
        "mochi-vae",
    ),
)

PIPELINE_PRESETS: Mapping[str, PipelinePreset] = MappingProxyType({row.name: row for row in _ROWS})
