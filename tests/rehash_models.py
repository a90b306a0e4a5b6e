"""A pipeline of few layers that takes prompts, named on the command line as `tests.rehash_models:prompted`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler

from tests.mini_pipeline import WIDTH, MiniPipeline, MiniText, MiniUNet, MiniVae


class PromptedPipeline(MiniPipeline):
    """Prompt in, frames out."""

    def check_inputs(self, prompt: str, height: int) -> None:  # type: ignore[override]
        if height % 2:
            raise ValueError(f"height must be even, got {height}")

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str,
        height: int = 16,
        num_inference_steps: int = 8,
        generator: torch.Generator | None = None,
        image: Any = None,  # taken and left
        output_type: str = "pt",
    ) -> dict[str, torch.Tensor]:
        self.check_inputs(prompt, height)
        device = self._execution_device
        words = self.text_encoder(torch.tensor([[ord(letter) % 16 for letter in prompt]], device=device))
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn(2, 4, height, 12, generator=generator, dtype=self.unet.dtype)
        for t in self.progress_bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(latents, t)
            noise = self.unet(given, t, encoder_hidden_states=words).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return {"frames": self.vae.decode(latents, return_dict=False)[0]}


def prompted() -> Any:
    """The pipeline, with random weights."""
    torch.manual_seed(0)
    parts = {"text_encoder": MiniText(), "unet": MiniUNet(), "vae": MiniVae()}
    return PromptedPipeline(**{k: v.eval() for k, v in parts.items()}, scheduler=DDIMScheduler(clip_sample=False))


def width() -> int:
    """What is no pipeline."""
    return WIDTH
