"""Whole pipelines by name: every call of a component that matters, built from configuration under fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from sicompiler.capture import weights_bytes
from sicompiler.capture.entry import FORWARD, entry_label
from sicompiler.errors import BadInput
from sicompiler.zoo.build import ModelCall, construct, default_dtype, fake_buffers_, new_fake_mode
from sicompiler.zoo.encoders import Encoder
from sicompiler.zoo.family import ExampleDraw, Inputs
from sicompiler.zoo.folders import is_pipeline_folder
from sicompiler.zoo.geometry import GivenSizes, Sizes
from sicompiler.zoo.load import family_of, pixels_of, resolve
from sicompiler.zoo.pipeline_folders import read_pipeline
from sicompiler.zoo.pipeline_presets import PIPELINE_PRESETS, PipelinePreset

if TYPE_CHECKING:
    import torch

__all__ = [
    "PIPELINE_PRESETS",
    "PartCall",
    "PartName",
    "PartSpec",
    "build_pipeline",
    "idle_weights",
    "is_pipeline_name",
    "part_specs",
    "pipeline_named",
]


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


def is_pipeline_name(spec: str) -> bool:
    """Whether the user means a whole pipeline: a preset of one, or its folder."""
    return spec in PIPELINE_PRESETS or is_pipeline_folder(spec)


def pipeline_named(spec: str) -> PipelinePreset:
    """The components of a pipeline.

    Args:
        spec: a key of `PIPELINE_PRESETS`, or the folder of a pipeline.

    Raises:
        BadInput: a component can't be planned; names it.
    """
    return PIPELINE_PRESETS.get(spec) or read_pipeline(Path(spec).expanduser())


def part_specs(name: str, dtype: str) -> tuple[PartSpec, ...]:
    """The calls of a pipeline, in the order of its phases.

    Args:
        name: a key of `PIPELINE_PRESETS`, or the folder of a pipeline.
        dtype: of weights and inputs; the encoding VAE is in float32 where the pipeline upcasts float16.
    """
    preset = pipeline_named(name)

    def denoiser(component: str, spec: str) -> PartSpec:
        def denoise(pixels: Sizes) -> ModelCall:
            return resolve(spec, dtype=dtype, **_given(pixels))

        return PartSpec("denoise", component, FORWARD, True, denoise)

    def decode(pixels: Sizes) -> ModelCall:
        frames = pixels.frames if preset.decoded is None else min(pixels.frames, preset.decoded)
        return resolve(preset.vae, dtype=dtype, **_given(pixels.replaced(batch=1, frames=frames)))

    def encode(pixels: Sizes) -> ModelCall:
        row = family_of(preset.vae)
        assert row is not None
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
    found += [denoiser(*row) for row in ((preset.component, preset.denoiser), *preset.more)]
    found.append(PartSpec("decode", "vae", "decode", True, decode, frames=preset.decoded))
    return tuple(found)


def build_pipeline(name: str, *, dtype: str = "float16", **sizes: Unpack[GivenSizes]) -> tuple[PartCall, ...]:
    """Build the calls of a pipeline, in the order of its phases.

    Args:
        name: a key of `PIPELINE_PRESETS`, or the folder of a pipeline.
        dtype: of weights and inputs.
        sizes: batch of the denoiser, frames, height and width; its own where they are not given.

    Raises:
        BadInput: sizes the model can't take, or diffusers or transformers is missing.
    """
    pixels = pixels_of(pipeline_named(name).denoiser, sizes)
    return tuple(spec.build(pixels) for spec in part_specs(name, dtype))


def idle_weights(name: str, dtype: str = "float16", device_type: str = "cpu") -> dict[str, int]:
    """Bytes of the components of a pipeline that never run, and yet are on the device with the others.

    Args:
        name: of the pipeline.
        dtype: of the weights.
        device_type: whose allocator rounds them up.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[str, int] = {}
    for part, class_name, config in pipeline_named(name).idle:
        try:
            with FakeTensorMode():
                found[part] = weights_bytes(_bare(class_name, config, getattr(torch, dtype)), device_type)
        except BadInput as error:
            raise BadInput(f"the {part} of {name} can't be counted: {error}") from error
    return found


def _given(pixels: Sizes) -> GivenSizes:
    return {"batch": pixels.batch, "frames": pixels.frames, "height": pixels.height, "width": pixels.width}


def _encoder(pipeline: str, encoder: Encoder, dtype: str) -> ModelCall:
    return _fake(
        f"{pipeline}.{encoder.name}",
        dtype,
        lambda torch_dtype: _of_transformers(encoder.class_name, encoder.config, torch_dtype),
        encoder.inputs,
    )


def _bare(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A component of diffusers or transformers without its weights' values."""
    import diffusers

    if hasattr(diffusers, class_name):
        return construct(class_name, config, dtype)
    return _of_transformers(class_name, config, dtype)


def _of_transformers(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise BadInput(f"{class_name} needs transformers: pip install 'sicompiler[diffusers]' ({error})") from error
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise BadInput(f"neither diffusers nor transformers {transformers.__version__} has the class {class_name}")
    with default_dtype(dtype):
        try:
            return model_class(model_class.config_class.from_dict(dict(config))).eval()
        except Exception as error:  # whatever the class raises, it is the configuration that it refuses
            raise BadInput(f"{class_name} refuses its configuration: {type(error).__name__}: {error}") from error


def _fake(
    name: str,
    dtype: str,
    make: Callable[[torch.dtype], Any],
    inputs: Callable[[ExampleDraw], Inputs],
    method: str = FORWARD,
) -> ModelCall:
    """A component and a call of it under fake tensors."""
    import torch

    torch_dtype: torch.dtype = getattr(torch, dtype)
    mode = new_fake_mode()
    with mode:
        module = make(torch_dtype)
        args, kwargs = inputs(ExampleDraw(torch_dtype))
    fake_buffers_(module, mode)
    return ModelCall(module, args, kwargs, name, None, mode, method)
