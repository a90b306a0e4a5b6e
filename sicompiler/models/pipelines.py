"""Whole pipelines by name: every call of a component that matters, built from configuration under fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sicompiler.capture import weights_bytes
from sicompiler.entry import entry_label
from sicompiler.errors import BadInput
from sicompiler.models.build import ModelCall, _default_dtype, _fake_buffers_, build_preset, construct
from sicompiler.models.family import Draw
from sicompiler.models.geometry import Sizes
from sicompiler.models.inputs import FAMILIES
from sicompiler.models.presets import PRESETS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PartCall:
    """One call of one component.

    Attributes:
        phase: encode, denoise or decode.
        component: its name in the pipeline.
        method: which of its methods.
        call: the component under fake tensors, and the inputs.
    """

    phase: str
    component: str
    method: str
    call: ModelCall

    @property
    def label(self) -> str:
        """As in the report of a pipeline: `unet`, `vae.decode`."""
        return entry_label(self.component, self.method)


@dataclass(frozen=True)
class PipelinePreset:
    """A whole pipeline.

    Attributes:
        name: what the user says.
        pipeline: its class of diffusers.
        denoiser: a preset.
        component: the name of the denoiser in the pipeline.
        encoder: name, class of transformers and configuration of what encodes the prompt or the image.
        encoder_inputs: makes the inputs of a call of it.
        vae: class of diffusers and what differs from its defaults.
        decode: makes the inputs of `vae.decode`: (latent sizes, latent channels, draw) to (args, kwargs).
        idle: name, class of diffusers and configuration of components that are registered but never run.
        encode: the image goes through `vae.encode`, in float32 where the configuration asks for that.
    """

    name: str
    pipeline: str
    denoiser: str
    component: str
    encoder: tuple[str, str, Mapping[str, Any]]
    encoder_inputs: Callable[[Draw], tuple[Any, ...]]
    vae: tuple[str, Mapping[str, Any]]
    decode: Callable[[Sizes, int, Draw], tuple[tuple[Any, ...], dict[str, Any]]]
    idle: tuple[tuple[str, str, Mapping[str, Any]], ...] = ()
    encode: bool = False


def _image(draw: Draw) -> tuple[Any, ...]:
    return (draw.normal(1, 3, 224, 224),)


def _prompts(batch: int, tokens: int, *, mask: bool) -> Callable[[Draw], tuple[Any, ...]]:
    def make(draw: Draw) -> tuple[Any, ...]:
        import torch

        ids = torch.zeros(batch, tokens, dtype=torch.int64)
        return (ids, torch.ones_like(ids)) if mask else (ids,)

    return make


def _frames_with_count(latent: Sizes, channels: int, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (draw.normal(latent.frames, channels, latent.height, latent.width),), {"num_frames": latent.frames}


def _frames_as_batch(latent: Sizes, channels: int, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (draw.normal(min(latent.frames, 16), channels, latent.height, latent.width),), {}


def _video(latent: Sizes, channels: int, draw: Draw) -> tuple[tuple[Any, ...], dict[str, Any]]:
    sample = draw.normal(1, channels, latent.frames, latent.height, latent.width)
    return (sample,), {"return_dict": False}


_BLOCKS = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
_DOWN, _UP = {"down_block_types": ("DownEncoderBlock2D",) * 4}, {"up_block_types": ("UpDecoderBlock2D",) * 4}
_CLIP_H = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def _svd(name: str, denoiser: str) -> PipelinePreset:
    return PipelinePreset(
        name,
        "StableVideoDiffusionPipeline",
        denoiser,
        "unet",
        ("image_encoder", "CLIPVisionModelWithProjection", _CLIP_H),
        _image,
        ("AutoencoderKLTemporalDecoder", {**_BLOCKS, **_DOWN, "force_upcast": True}),
        _frames_with_count,
        encode=True,
    )


_ROWS = (
    _svd("svd-pipeline", "svd"),
    _svd("svd-xt-pipeline", "svd-xt"),
    PipelinePreset(
        "animatediff-pipeline",
        "AnimateDiffPipeline",
        "animatediff",
        "unet",
        ("text_encoder", "CLIPTextModel", _CLIP_L),
        _prompts(1, 77, mask=False),
        ("AutoencoderKL", {**_BLOCKS, **_DOWN, **_UP}),
        _frames_as_batch,
        (("motion_adapter", "MotionAdapter", {"use_motion_mid_block": True}),),
    ),
    PipelinePreset(
        "wan2.1-1.3b-pipeline",
        "WanPipeline",
        "wan2.1-1.3b",
        "transformer",
        ("text_encoder", "UMT5EncoderModel", _UMT5_XXL),
        _prompts(1, 512, mask=True),
        ("AutoencoderKLWan", {}),
        _video,
    ),
)

PIPELINE_PRESETS: Mapping[str, PipelinePreset] = MappingProxyType({row.name: row for row in _ROWS})


def build_pipeline(
    name: str,
    *,
    batch: int | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    dtype: str = "float16",
) -> tuple[PartCall, ...]:
    """Build the calls of a pipeline, in the order of its phases.

    Args:
        name: a key of `PIPELINE_PRESETS`.
        batch: rows of the denoiser's batch.
        frames: video frames.
        height: pixels.
        width: pixels.
        dtype: of weights and inputs; the encoding VAE is in float32 where its configuration says `force_upcast`.

    Raises:
        BadInput: sizes the model can't take, or diffusers or transformers is missing.
    """
    preset = PIPELINE_PRESETS[name]
    denoiser = build_preset(preset.denoiser, batch=batch, frames=frames, height=height, width=width, dtype=dtype)
    assert denoiser.sizes is not None
    row = PRESETS[preset.denoiser]
    latent = FAMILIES[row.class_name].geometry.latent(denoiser.sizes, _config(denoiser.module), name)
    found = [PartCall("encode", preset.encoder[0], "forward", _encoder(preset, dtype))]
    vae_class, vae_config = preset.vae
    if preset.encode:
        upcast = "float32" if vae_config.get("force_upcast") and dtype == "float16" else dtype
        pixels = denoiser.sizes
        encode = _fake(
            f"{name}.vae.encode",
            upcast,
            lambda d: construct(vae_class, vae_config, d),
            lambda module, draw: ((draw.normal(1, 3, pixels.height, pixels.width),), {}),
        )
        found.append(PartCall("encode", "vae", "encode", encode))
    found.append(PartCall("denoise", preset.component, "forward", denoiser))
    decode = _fake(
        f"{name}.vae.decode",
        dtype,
        lambda d: construct(vae_class, vae_config, d),
        lambda module, draw: preset.decode(latent, _latent_channels(module.config), draw),
    )
    found.append(PartCall("decode", "vae", "decode", decode))
    return tuple(found)


def idle_weights(name: str, dtype: str = "float16") -> dict[str, int]:
    """Bytes of the components of a pipeline that never run, and yet are on the device with the others."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        parts = {part: construct(c, config, getattr(torch, dtype)) for part, c, config in PIPELINE_PRESETS[name].idle}
    return {part: weights_bytes(module) for part, module in parts.items()}


def _config(module: Any) -> Mapping[str, Any]:
    config: Mapping[str, Any] = module.config
    return config


def _latent_channels(config: Mapping[str, Any]) -> int:
    return int(config["z_dim"] if "z_dim" in config else config["latent_channels"])


def _encoder(preset: PipelinePreset, dtype: str) -> ModelCall:
    component, class_name, config = preset.encoder

    def make(torch_dtype: torch.dtype) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise BadInput(f"{class_name} needs transformers: pip install 'sicompiler[diffusers]' ({error})") from error
        model_class = getattr(transformers, class_name)
        with _default_dtype(torch_dtype):
            return model_class(model_class.config_class(**config)).eval()

    name = f"{preset.name}.{component}"
    return _fake(name, dtype, make, lambda module, draw: (preset.encoder_inputs(draw), {}))


def _fake(
    name: str,
    dtype: str,
    make: Callable[[torch.dtype], Any],
    inputs: Callable[[Any, Draw], tuple[tuple[Any, ...], dict[str, Any]]],
) -> ModelCall:
    """A component and a call of it under fake tensors."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    torch_dtype: torch.dtype = getattr(torch, dtype)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(tracked_fakes=[]))
    with mode:
        module = make(torch_dtype)
        args, kwargs = inputs(module, Draw(torch_dtype))
    _fake_buffers_(module, mode)
    return ModelCall(module, args, kwargs, name, None, mode)
