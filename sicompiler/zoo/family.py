"""A class of diffusers as the zoo knows it: how pixels become latents, and what its calls look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sicompiler.zoo.geometry import Geometry, Sizes

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class ExampleDraw:
    """Makes example tensors: fake ones under a fake mode, else random ones that a seed fixes.

    Attributes:
        dtype: of every tensor that the pipeline keeps in the model's precision.
        generator: of the random numbers; None under a fake mode.
    """

    dtype: torch.dtype
    generator: torch.Generator | None = None

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers."""
        import torch

        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def valid(self, batch: int, tokens: int) -> torch.Tensor:
        """A bool mask of prompts padded at their end, [batch, tokens]: prompts grow from row to row, all are padded."""
        import torch

        lengths = torch.tensor([max(1, tokens * (row + 1) // (batch + 1)) for row in range(batch)])
        return torch.arange(tokens) < lengths[:, None]

    def full(self, *values: float) -> torch.Tensor:
        """A vector of the given values in the model's precision."""
        import torch

        return torch.tensor(values, dtype=self.dtype)

    def timestep(self, value: float) -> torch.Tensor:
        """One step of a scheduler, shape []: int64 from a whole number, else float32, as in every pipeline."""
        import torch

        return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float32)


@dataclass(frozen=True)
class Family:
    """One class of diffusers: what its calls look like.

    Attributes:
        geometry: pixels to latents.
        sizes: default sizes in pixels and video frames.
        text_tokens: length the pipeline pads prompts to.
        make: (config, latent sizes, text tokens, draw) to (args, kwargs) of a call with `return_dict=False`.
        size_keys: the configuration key of each default size the pipeline reads there; height and width are latent.
        method: the entry point of these calls.
        geometry_keys: the configuration key of each field of `geometry` that the configuration may say otherwise.
        tables: whether the class builds tables for the sizes in its configuration, so that a preset has to say there
            what it is asked for.
        levels: how many resolutions a UNet works at, if its configuration does not say; 1 for others.
        derived: fields of `geometry` that follow from other parts of the configuration; `geometry_keys` go before.
        patch_key: the configuration key of the patch size of a transformer: a number, or one each dim.
        latent_channels: the configuration key of the channels of a denoiser's latents, and how many those of the usual
            VAE have; others come from another VAE, with another compression.
        variants: other makers, by the key of the pipeline's index that asks for them.
    """

    geometry: Geometry
    sizes: Sizes
    text_tokens: int
    make: Callable[[Config, Sizes, int, ExampleDraw], Inputs]
    size_keys: Mapping[str, str] = field(default_factory=dict)
    method: str = "forward"
    geometry_keys: Mapping[str, str] = field(default_factory=dict)
    tables: bool = False
    levels: int = 1
    derived: Callable[[Config], Mapping[str, int]] | None = None
    patch_key: str = ""
    latent_channels: tuple[str, int] | None = None
    variants: Mapping[str, Callable[[Config, Sizes, int, ExampleDraw], Inputs]] = field(default_factory=dict)

    def default_sizes(self, config: Config) -> Sizes:
        """Sizes in pixels when the user gives none: what the configuration says, else those of the class."""
        found = {size: config[key] for size, key in self.size_keys.items() if isinstance(config.get(key), int)}
        pixels = {size: n if size == "frames" else n * self.geometry.spatial for size, n in found.items()}
        return self.sizes.replaced(**pixels)

    def config_for(self, config: Config, pixels: Sizes) -> Config:
        """The configuration of a model whose tables are made for some sizes."""
        if not self.tables:
            return config
        latent = {
            "frames": pixels.frames,
            **{s: getattr(pixels, s) // self.geometry.spatial for s in ("height", "width")},
        }
        return {**config, **{key: latent[size] for size, key in self.size_keys.items()}}

    def period(self, config: Config) -> int:
        """What height and width may change by, in pixels, so that a model stays the same operators.

        A UNet halves its latents from level to level and rounds odd ones, which takes other operators on the way up.
        """
        levels = len(config.get("block_out_channels", range(self.levels))) if self.levels > 1 else 1
        return math.lcm(self.geometry_of(config).multiple, self.geometry_of(config).spatial * 2 ** (levels - 1))

    def geometry_of(self, config: Config) -> Geometry:
        """The geometry of the class, with what the configuration says otherwise."""
        own = self.geometry
        found = dict(self.derived(config)) if self.derived is not None else {}
        found |= {name: config[key] for name, key in self.geometry_keys.items() if isinstance(config.get(key), int)}
        patch = config.get(self.patch_key)
        side = patch[-1] if isinstance(patch, (list, tuple)) and patch else patch
        multiple = side if isinstance(side, int) else own.multiple // own.spatial
        spatial, temporal = found.get("spatial", own.spatial), found.get("temporal", own.temporal)
        return replace(own, spatial=spatial, temporal=temporal, multiple=multiple * spatial)

    def behind(self, vae: Geometry) -> Family:
        """The family of a denoiser whose latents come from a VAE; default sizes become those it can take."""
        multiple = self.geometry.multiple // self.geometry.spatial * vae.spatial
        geometry = replace(self.geometry, spatial=vae.spatial, temporal=vae.temporal, multiple=multiple)
        frames = (self.sizes.frames - 1) // vae.temporal * vae.temporal + 1
        sides = {side: max(getattr(self.sizes, side) // multiple, 1) * multiple for side in ("height", "width")}
        return replace(self, geometry=geometry, sizes=replace(self.sizes, frames=frames, **sides))

    def called_by(self, index: Config) -> Family:
        """The family as a pipeline calls it, by what its index says."""
        makers = [make for key, make in self.variants.items() if index.get(key) is True]
        return replace(self, make=makers[0]) if makers else self
