"""Whole pipelines by name: every call of a component that matters, built from configuration under fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack

from sicompiler.capture import weights_bytes
from sicompiler.entry import FORWARD, entry_label
from sicompiler.errors import BadInput
from sicompiler.models import encoders
from sicompiler.models.build import ModelCall, build_preset, construct, default_dtype, fake_buffers_, sizes_of
from sicompiler.models.encoders import Encoder
from sicompiler.models.family import Draw, Inputs
from sicompiler.models.geometry import GivenSizes, Sizes
from sicompiler.models.presets import PRESETS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PartName:
    """Which call of which component.

    Attributes:
        phase: encode, denoise or decode.
        component: its name in the pipeline.
        method: which of its methods.
    """

    phase: str
    component: str
    method: str

    @property
    def label(self) -> str:
        """As in the report of a pipeline: `unet`, `vae.decode`."""
        return entry_label(self.component, self.method)


@dataclass(frozen=True)
class PartCall(PartName):
    """One call of one component.

    Attributes:
        call: the component under fake tensors, and the inputs.
    """

    call: ModelCall


@dataclass(frozen=True)
class PartSpec(PartName):
    """One call of one component, still to be built.

    Attributes:
        sized: whether the call depends on the sizes of the video.
        make: builds it, for sizes in pixels.
        frames: the most frames it sees at once; None for all.
    """

    sized: bool
    make: Callable[[Sizes], ModelCall]
    frames: int | None = None

    def build(self, pixels: Sizes) -> PartCall:
        """The call for some sizes."""
        return PartCall(self.phase, self.component, self.method, self.make(pixels))


@dataclass(frozen=True)
class PipelinePreset:
    """A whole pipeline.

    Attributes:
        name: what the user says.
        pipeline: its class of diffusers.
        denoiser: a preset.
        component: the name of the denoiser in the pipeline.
        encoders: what encodes the prompt and the image.
        vae: a preset.
        idle: name, class of diffusers and configuration of components that are registered but never run.
        encode: the image goes through `vae.encode`.
        upcast: in float32, where the pipeline is in float16.
        decoded: the most frames that go through `vae.decode` at once; None for all.
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


def part_specs(name: str, dtype: str) -> tuple[PartSpec, ...]:
    """The calls of a pipeline, in the order of its phases.

    Args:
        name: a key of `PIPELINE_PRESETS`.
        dtype: of weights and inputs; the encoding VAE is in float32 where the pipeline upcasts float16.
    """
    preset = PIPELINE_PRESETS[name]

    def denoise(pixels: Sizes) -> ModelCall:
        return build_preset(preset.denoiser, dtype=dtype, **_given(pixels))

    def decode(pixels: Sizes) -> ModelCall:
        frames = pixels.frames if preset.decoded is None else min(pixels.frames, preset.decoded)
        return build_preset(preset.vae, dtype=dtype, **_given(pixels.replaced(batch=1, frames=frames)))

    def encode(pixels: Sizes) -> ModelCall:
        row = PRESETS[preset.vae]
        return _fake(
            f"{name}.vae.encode",
            "float32" if preset.upcast and dtype == "float16" else dtype,
            lambda torch_dtype: construct(row.class_name, row.config, torch_dtype),
            lambda draw: ((draw.normal(1, 3, pixels.height, pixels.width),), {}),
            method="encode",
        )

    def encoder(row: Encoder) -> PartSpec:
        return PartSpec("encode", row.name, FORWARD, False, lambda _: _encoder(name, row, dtype))

    found = [encoder(row) for row in preset.encoders]
    if preset.encode:
        found.append(PartSpec("encode", "vae", "encode", True, encode, frames=1))
    found.append(PartSpec("denoise", preset.component, FORWARD, True, denoise))
    found.append(PartSpec("decode", "vae", "decode", True, decode, frames=preset.decoded))
    return tuple(found)


def build_pipeline(name: str, *, dtype: str = "float16", **sizes: Unpack[GivenSizes]) -> tuple[PartCall, ...]:
    """Build the calls of a pipeline, in the order of its phases.

    Args:
        name: a key of `PIPELINE_PRESETS`.
        dtype: of weights and inputs.
        sizes: batch of the denoiser, frames, height and width; its own where they are not given.

    Raises:
        BadInput: sizes the model can't take, or diffusers or transformers is missing.
    """
    pixels = sizes_of(PIPELINE_PRESETS[name].denoiser, sizes)
    return tuple(spec.build(pixels) for spec in part_specs(name, dtype))


def idle_weights(name: str, dtype: str = "float16") -> dict[str, int]:
    """Bytes of the components of a pipeline that never run, and yet are on the device with the others."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        parts = {part: construct(c, config, getattr(torch, dtype)) for part, c, config in PIPELINE_PRESETS[name].idle}
    return {part: weights_bytes(module) for part, module in parts.items()}


def _given(pixels: Sizes) -> GivenSizes:
    return {"batch": pixels.batch, "frames": pixels.frames, "height": pixels.height, "width": pixels.width}


def _encoder(pipeline: str, encoder: Encoder, dtype: str) -> ModelCall:
    def make(torch_dtype: torch.dtype) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise BadInput(
                f"{encoder.class_name} needs transformers: pip install 'sicompiler[diffusers]' ({error})"
            ) from error
        model_class = getattr(transformers, encoder.class_name)
        with default_dtype(torch_dtype):
            return model_class(model_class.config_class(**encoder.config)).eval()

    return _fake(f"{pipeline}.{encoder.name}", dtype, make, encoder.inputs)


def _fake(
    name: str,
    dtype: str,
    make: Callable[[torch.dtype], Any],
    inputs: Callable[[Draw], Inputs],
    method: str = FORWARD,
) -> ModelCall:
    """A component and a call of it under fake tensors."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    torch_dtype: torch.dtype = getattr(torch, dtype)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(tracked_fakes=[]))
    with mode:
        module = make(torch_dtype)
        args, kwargs = inputs(Draw(torch_dtype))
    fake_buffers_(module, mode)
    return ModelCall(module, args, kwargs, name, None, mode, method)
