"""Build a model from its configuration: without memory under fake tensors, or with random weights."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from sicompiler.errors import BadInput
from sicompiler.zoo.family import ExampleDraw, Family
from sicompiler.zoo.geometry import GivenSizes, Sizes
from sicompiler.zoo.inputs import FAMILIES
from sicompiler.zoo.presets import PRESETS, Preset

if TYPE_CHECKING:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

_DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class ModelCall:
    """A model and one call of it: `module(*args, **kwargs)`, or of another of its methods.

    Attributes:
        module: the model, in eval mode.
        args: positional example inputs.
        kwargs: keyword example inputs.
        name: how the user named it.
        sizes: in pixels and video frames; None where they are not known.
        fake_mode: the mode that parameters, buffers and inputs belong to; None where they are real.
        method: the entry point: the name of the method that is called.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    sizes: Sizes | None = None
    fake_mode: FakeTensorMode | None = None
    method: str = "forward"


def new_fake_mode() -> FakeTensorMode:
    """A mode whose sizes are handled as `torch.export` has it: torch keeps the layouts of results by such settings."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    sizes = ShapeEnv(tracked_fakes=[], trace_asserts=True)
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=sizes)


def build_preset(
    name: str, *, dtype: str = "float16", fake: bool = True, seed: int = 0, **sizes: Unpack[GivenSizes]
) -> ModelCall:
    """Build a preset and its example inputs.

    Args:
        name: one of `known_presets()`.
        dtype: of weights and inputs: float16, bfloat16, float32 or float64.
        fake: build under fake tensors, which take no memory; else random weights on the CPU.
        seed: of the random weights and inputs.
        sizes: batch, frames, height and width; those of the model where they are not given.

    Raises:
        BadInput: unknown preset or dtype, or sizes the model can't take.
    """
    preset = preset_named(name)
    return build_model(
        name,
        preset.class_name,
        preset.config,
        sizes,
        default_sizes=preset.sizes,
        dtype=dtype,
        fake=fake,
        seed=seed,
    )


def preset_named(name: str) -> Preset:
    """A preset.

    Raises:
        BadInput: there is none of that name.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise BadInput(f"unknown preset {name!r}{_nearest(name)}; known presets: {', '.join(PRESETS)}")
    return preset


def sizes_of(name: str, given: GivenSizes) -> Sizes:
    """The sizes of a preset in pixels and video frames.

    Args:
        name: of the preset.
        given: what the user says.

    Raises:
        BadInput: unknown preset, or sizes that the model can't take.
    """
    preset = preset_named(name)
    family = FAMILIES[preset.class_name]
    pixels = (preset.sizes or family.default_sizes(preset.config)).replaced(**given)
    family.geometry_of(preset.config).latent(pixels, preset.config, name)
    return pixels


def build_model(  # noqa: PLR0913  # a model, and how its weights and inputs are made
    name: str,
    class_name: str,
    config: Mapping[str, Any],
    sizes: GivenSizes,
    *,
    default_sizes: Sizes | None = None,
    family: Family | None = None,
    dtype: str = "float16",
    fake: bool = True,
    seed: int = 0,
) -> ModelCall:
    """Build any class of diffusers that has example inputs.

    Args:
        name: for the result and for errors.
        class_name: the class of diffusers, a key of `FAMILIES`.
        config: its configuration; what is missing takes the default of the class.
        sizes: batch, frames, height and width, in pixels and video frames, as far as the user gives them.
        default_sizes: the others; None for those that the configuration or the class says.
        family: what its calls look like behind a VAE of its own; None for those of the class.
        dtype: of weights and inputs.
        fake: build under fake tensors.
        seed: of the random weights and inputs.

    Raises:
        BadInput: unknown dtype, sizes the model can't take, or a configuration the class refuses.
    """
    if dtype not in _DTYPES:
        raise BadInput(f"unknown dtype {dtype!r}; known: {', '.join(_DTYPES)}")
    family = family or FAMILIES[class_name]
    pixels = (default_sizes or family.default_sizes(config)).replaced(**sizes)
    latent = family.geometry_of(config).latent(pixels, config, name)
    config = family.config_for(config, pixels)

    import torch

    torch_dtype: torch.dtype = getattr(torch, dtype)
    fake_mode = new_fake_mode() if fake else None
    with fake_mode or contextlib.nullcontext():
        module = construct(class_name, config, torch_dtype)
        if fake_mode is None:
            randomize_(module, seed)
        draw = ExampleDraw(torch_dtype, None if fake else torch.Generator().manual_seed(seed))
        args, kwargs = family.make(module.config, latent, family.text_tokens, draw)
    if fake_mode is not None:
        fake_buffers_(module, fake_mode)
    return ModelCall(module, args, kwargs, name, pixels, fake_mode, family.method)


def construct(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A model of diffusers with uninitialised parameters, in eval mode, in the precision `from_pretrained` gives it.

    Modules that the class keeps in float32 (`_keep_in_fp32_modules`) are kept so below float32.

    Args:
        class_name: of diffusers.
        config: what differs from the defaults of the class.
        dtype: of parameters and buffers.

    Raises:
        BadInput: diffusers is not installed, or the class refuses the configuration.
    """
    try:
        import diffusers
        from diffusers.models.modeling_utils import no_init_weights
    except ImportError as error:
        raise BadInput(f"{class_name} needs diffusers: pip install 'sicompiler[diffusers]' ({error})") from error
    import torch

    model_class = getattr(diffusers, class_name)
    with default_dtype(dtype), no_init_weights():
        try:
            module = model_class.from_config(dict(config))
        except Exception as error:  # whatever the class raises, it is the configuration that it refuses
            raise BadInput(f"{class_name} refuses its configuration: {type(error).__name__}: {error}") from error
    if dtype.itemsize < torch.float32.itemsize:
        kept = set(model_class._keep_in_fp32_modules or ())
        for path, tensor in module.state_dict(keep_vars=True).items():
            if kept.intersection(path.split(".")) and tensor.is_floating_point():
                tensor.data = tensor.data.float()
    return module.eval()


def randomize_(module: torch.nn.Module, seed: int) -> None:
    """Fill every parameter with random numbers, none of them zero, so that every path counts and outputs stay finite.

    Matrices and kernels keep the variance of what they are applied to (1 / fan-in), gains are near 1, biases and mixing
    factors are small numbers off 0.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in module.named_parameters():
            scalar_like = parameter.numel() == 1
            if parameter.ndim >= 2:
                parameter.normal_(0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)
            elif scalar_like:
                parameter.uniform_(0.2, 0.8, generator=generator)
            else:
                gain = 1.0 if path.endswith("weight") else 0.0
                parameter.normal_(gain, 0.1, generator=generator)


def _nearest(name: str) -> str:
    found = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else ""


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fake_buffers_(module: torch.nn.Module, fake_mode: FakeTensorMode) -> None:
    """Replace the buffers a model computed outside of torch (by numpy) by fake ones."""
    from torch._subclasses.fake_tensor import FakeTensor

    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if not isinstance(buffer, FakeTensor):
                child._buffers[name] = fake_mode.from_tensor(buffer, static_shapes=True)
