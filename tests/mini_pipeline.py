"""A diffusers pipeline of a few layers: what the contract with diffusers is tested on, planned in no time."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ConfigMixin, DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

import sicompiler

WIDTH = 8


class MiniUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A wide feed-forward over pixels, conditioned on a prompt."""

    @register_to_config
    def __init__(self, channels: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(channels, 16 * WIDTH, 1), nn.Conv2d(16 * WIDTH, channels, 1)
        self.prompt = nn.Linear(WIDTH, 16 * WIDTH)
        self.gain = gain

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:
        hidden = self.up(sample) + self.prompt(encoder_hidden_states.mean(1))[:, :, None, None]
        out = self.down(nn.functional.silu(hidden)) * self.gain + timestep * 1e-4
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


class MiniVae(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Twice as many pixels as latents."""

    @register_to_config
    def __init__(self, force_upcast: bool = False) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(4, 3 * 4, 1)
        self.use_tiling = False

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        found = DiagonalGaussianDistribution(self.into(x))
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        out = nn.functional.pixel_shuffle(self.out(z), 2).tanh()
        return DecoderOutput(sample=out) if return_dict else (out,)

    def forward(self, x: torch.Tensor) -> Any:
        return self.decode(self.encode(x).latent_dist.mode())


class MiniText(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Embeds the numbers of words."""

    @register_to_config
    def __init__(self, untraceable: bool = False) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(16, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.untraceable = untraceable

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.untraceable and torch.compiler.is_exporting():
            raise RuntimeError("not to be traced")
        result: torch.Tensor = self.mix(self.words(ids))
        return result


Callback = Callable[..., dict[str, Any]]


class MiniPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Prompt and first image in, an image out."""

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ("latents",)
    _optional_components = ("image_encoder",)

    def __init__(  # from_pipe reads these types
        self,
        text_encoder: MiniText,
        unet: MiniUNet,
        vae: MiniVae,
        scheduler: DDIMScheduler,
        image_encoder: MiniText | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            text_encoder=text_encoder, unet=unet, vae=vae, scheduler=scheduler, image_encoder=image_encoder
        )

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.text_encoder(ids)
        return found

    def check_inputs(self, image: torch.Tensor) -> None:
        if image.ndim != 4:
            raise ValueError("image must have 4 dims")

    @torch.no_grad()
    def __call__(
        self,
        image: torch.Tensor,
        steps: int = 2,
        return_dict: bool = True,
        ballast: int = 0,
        callback_on_step_end: Callback | None = None,
    ) -> torch.Tensor:
        self.check_inputs(image)
        self._interrupt = False
        ids = torch.arange(6, device=self._execution_device).reshape(2, 3)
        prompt = self.encode(ids)
        if self.image_encoder is not None:
            prompt = prompt + self.image_encoder(ids)
        encoded = self.vae.encode(image.to(self.vae.dtype), return_dict=return_dict)
        latents = encoded.latent_dist.mode() if return_dict else encoded[0].mode()
        self.scheduler.set_timesteps(steps)
        kept = []  # what a pipeline holds beside the inputs of its components
        for step, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self.interrupt:
                continue
            both = torch.cat([latents] * 2).to(self.unet.dtype)
            found = self.unet(both, t, encoder_hidden_states=prompt, return_dict=return_dict)
            noise = found.sample if return_dict else found[0]
            latents = self.scheduler.step(noise.chunk(2)[0], t, latents).prev_sample
            kept.append(torch.zeros(ballast, dtype=torch.uint8))
            if callback_on_step_end is not None:
                latents = callback_on_step_end(self, step, t, {"latents": latents}).get("latents", latents)
        image = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        self.maybe_free_model_hooks()
        return image


def mini(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A pipeline with random weights."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "text_encoder": MiniText(), "unet": MiniUNet(), "vae": MiniVae(),
        "scheduler": DDIMScheduler(clip_sample=False), **changes,
    }  # fmt: skip
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.to(dtype).eval()
    pipe = MiniPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(size: int = 24, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """An image to start from."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def calls(pipe: Any, component: str) -> int:
    """How often a component ran by a plan."""
    rows = sicompiler.report(pipe).phases
    return sum(row.calls for row in rows if row.component == component and row.predicted_peak_bytes is not None)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for roundings of float64."""
    return bool((a - b).abs().max() <= 1e-12)
