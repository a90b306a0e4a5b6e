"""Trains the demo pipeline from nothing, as `sicompiler.demo_pipeline()` loads it.

    python examples/train_demo.py --seed 0 --output demo_model
    python examples/train_demo.py --seed 0 --output demo_model --resume   # goes on where it was stopped

Four stages, the way AnimateDiff was made: a VAE on frames; latents of a set of clips, once; a UNet on single frames,
which teaches colours and shapes at a sixteenth of the price of a clip; then motion modules go in and the UNet learns
whole clips. The text encoder is drawn at random and stays as it is. All data is drawn by `sicompiler.demo.shapes`.
docs/demo-model.md tells how long it takes and how good the result is.

Every step draws from a random generator of its own, seeded by the seed, the stage and the step. So a checkpoint needs
weights and the optimiser's state only, and a run that was interrupted ends with the weights of one that was not, given
the same number of threads.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn import functional

from sicompiler.demo import parts
from sicompiler.demo.shapes import FRAMES, clip
from sicompiler.demo.words import training_scenes

DROPPED_CAPTIONS = 0.1  # share of captions left empty, for classifier-free guidance
EMA_DECAY = 0.998
EARLY_FRAMES = 4
MIDDLE = 0.6  # of all times: the density in the middle of the schedule is 1 / (1 - MIDDLE)


@dataclass(frozen=True)
class Settings:
    """How much to train. Learning rates go with the steps: they rise, and fall along a cosine."""

    seed: int
    output: Path
    resume: bool = False
    clips: int = 6144
    vae_steps: int = 1000
    vae_batch: int = 32  # frames
    image_steps: int = 4000
    image_batch: int = 32  # frames
    clip_steps: int = 4000
    clip_batch: int = 4
    checkpoint_seconds: float = 60.0


Tell = Callable[[str, int, int, float], None]  # stage, steps done, steps in all, loss of late


def generator(settings: Settings, stage: str, number: int) -> torch.Generator:
    """Random numbers of one step, whatever ran before."""
    name = f"{settings.seed}/{stage}/{number}".encode()
    return torch.Generator().manual_seed(zlib.crc32(name))


class Stage:
    """A stage that trains: steps, checkpoints, a moving average of the weights.

    Attributes:
        trained: the modules with the weights as they are, by name.
        average: the same modules with averaged weights: the stage's result.
    """

    def __init__(self, name: str, settings: Settings, trained: dict[str, Any], *, steps: int, rate: float) -> None:
        self.name, self.settings, self.steps, self.rate = name, settings, steps, rate
        self.trained = torch.nn.ModuleDict(trained)
        self.average = copy.deepcopy(self.trained).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.trained.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.done = 0
        self.loss = math.nan
        self.file = settings.output / "training" / f"{name}.pt"
        if settings.resume and self.file.exists():
            self._load()

    def run(self, loss: Callable[[torch.Generator], torch.Tensor], tell: Tell) -> None:
        """Train to the end; on an interrupt, save first."""
        saved = time.monotonic()
        try:
            while self.done < self.steps:
                self._step(loss(generator(self.settings, self.name, self.done)))
                if time.monotonic() - saved > self.settings.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                tell(self.name, self.done, self.steps, self.loss)
        finally:
            self.save()

    def save(self) -> None:
        """Write the checkpoint; one that is half written never replaces a whole one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "done": self.done,
            "loss": self.loss,
            "trained": self.trained.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.file)

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.done, self.loss = state["done"], state["loss"]
        self.trained.load_state_dict(state["trained"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _step(self, loss: torch.Tensor) -> None:
        warm_up = min(1.0, (self.done + 1) / 100)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm_up * (0.51 + 0.49 * math.cos(math.pi * self.done / self.steps))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimiser.step()
        self.done += 1
        decay = min(EMA_DECAY, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.trained.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()


def train_vae(settings: Settings, tell: Tell) -> Any:
    """An autoencoder of single frames, its latents standardized."""
    stage = Stage("vae", settings, {"vae": parts.vae()}, steps=settings.vae_steps, rate=2e-3)
    scenes = training_scenes()
    vae = stage.trained["vae"]

    def frames(numbers: torch.Generator, count: int) -> torch.Tensor:
        chosen = torch.randint(len(scenes), (count,), generator=numbers).tolist()
        drawn = [clip(scenes[number], numbers) for number in chosen]
        at = torch.randint(FRAMES, (count,), generator=numbers).tolist()
        return torch.stack([one[number] for one, number in zip(drawn, at, strict=True)])

    def loss(numbers: torch.Generator) -> torch.Tensor:
        pictures = frames(numbers, settings.vae_batch)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=numbers)
        back = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return functional.mse_loss(back, pictures) + 0.1 * functional.l1_loss(back, pictures) + 1e-4 * kl

    stage.run(loss, tell)
    trained = stage.average["vae"]
    with torch.no_grad():
        parts.standardize_(trained, trained.encode(frames(generator(settings, "standardize", 0), 256)).latent_dist.mean)
    return trained


def encode_clips(settings: Settings, vae: Any, tell: Tell) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the clips that both UNet stages train on, and the scene of each.

    Returns:
        (clips, frames, channels, height, width) in float16, and (clips,).
    """
    file = settings.output / "training" / "latents.pt"
    if settings.resume and file.exists():
        kept = torch.load(file, weights_only=True)
        return kept["latents"], kept["scenes"]
    scenes = training_scenes()
    latents = []
    with torch.no_grad():
        for number in range(settings.clips):
            frames = clip(scenes[number % len(scenes)], generator(settings, "clip", number))
            latents.append(vae.encode(frames).latent_dist.mean.half())
            tell("latents", number + 1, settings.clips, math.nan)
    kept = {"latents": torch.stack(latents), "scenes": torch.arange(settings.clips) % len(scenes)}
    partial = file.with_suffix(".partial")
    torch.save(kept, partial)
    os.replace(partial, file)
    return kept["latents"], kept["scenes"]


class Captions:
    """What the text encoder says of every training caption; the last row is of the empty one."""

    def __init__(self, words: Any, text_encoder: Any) -> None:
        texts = [*(scene.caption for scene in training_scenes()), ""]
        with torch.no_grad():
            self.states = text_encoder(words(texts, padding="max_length", return_tensors="pt").input_ids)[0]

    def of(self, scenes: torch.Tensor, numbers: torch.Generator) -> torch.Tensor:
        """States (scenes, tokens, width) of some scenes, a few of them replaced by the empty caption's."""
        empty = torch.rand(len(scenes), generator=numbers) < DROPPED_CAPTIONS
        return self.states[torch.where(empty, len(self.states) - 1, scenes)]


def denoising_loss(
    unet: Any, schedule: Any, clean: torch.Tensor, text: torch.Tensor, numbers: torch.Generator, *, power: float = 1.0
) -> torch.Tensor:
    """Squared error of the predicted velocity at random times, one a sample.

    Most times are in the middle of the schedule: there the shape is settled, which words say with few pixels, while the
    ends hold errors that no training removes. With a power below 1 the middle lies later, where there is more noise.
    """
    count = len(clean)
    spread = (torch.randperm(count, generator=numbers) + torch.rand(count, generator=numbers)) / count
    middling = spread + MIDDLE * torch.sin(2 * math.pi * spread) / (2 * math.pi)
    last = schedule.config.num_train_timesteps - 1
    times = (middling**power * (last + 1)).long().clamp(max=last)
    noise = torch.randn(clean.shape, generator=numbers)
    predicted = unet(schedule.add_noise(clean, noise, times), times, encoder_hidden_states=text).sample
    return functional.mse_loss(predicted, schedule.get_velocity(clean, noise, times))


def train_images(
    settings: Settings, captions: Captions, data: tuple[torch.Tensor, torch.Tensor], tell: Tell
) -> torch.nn.Module:
    """A UNet of single frames, early ones: they show a caption's direction by the border that the shape starts from.

    A model that has not learned to use this word by then does not begin to in the next stage.
    """
    latents, scenes = data
    stage = Stage("images", settings, {"unet": parts.image_unet()}, steps=settings.image_steps, rate=2e-3)
    schedule = parts.scheduler()

    def loss(numbers: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(latents), (settings.image_batch,), generator=numbers)
        at = torch.randint(EARLY_FRAMES, (settings.image_batch,), generator=numbers)
        text = captions.of(scenes[chosen], numbers)
        return denoising_loss(stage.trained["unet"], schedule, latents[chosen, at].float(), text, numbers)

    stage.run(loss, tell)
    return stage.average["unet"]


def train_clips(
    settings: Settings, captions: Captions, images: Any, data: tuple[torch.Tensor, torch.Tensor], tell: Tell
) -> torch.nn.Module:
    """The UNet of whole clips, begun as that of single frames. What is new, motion, is settled where noise is high."""
    latents, scenes = data
    unet = parts.video_unet(images).requires_grad_(True)
    stage = Stage("clips", settings, {"unet": unet}, steps=settings.clip_steps, rate=1.5e-3)
    schedule = parts.scheduler()

    def loss(numbers: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(latents), (settings.clip_batch,), generator=numbers)
        text = captions.of(scenes[chosen], numbers).repeat_interleave(FRAMES, 0)
        clean = latents[chosen].float().transpose(1, 2)  # the UNet wants channels before frames
        return denoising_loss(stage.trained["unet"], schedule, clean, text, numbers, power=0.6)

    stage.run(loss, tell)
    return stage.average["unet"]


def train(settings: Settings, tell: Tell) -> None:
    """All stages, and the pipeline's folder; what a resumed run finds done is not done again."""
    import diffusers

    torch.manual_seed(settings.seed)  # initial weights; a resumed run overwrites those it has checkpoints of
    vae = train_vae(settings, tell)
    data = encode_clips(settings, vae, tell)
    words = parts.tokenizer()
    text_encoder = parts.text_encoder(words).eval()
    captions = Captions(words, text_encoder)
    images = train_images(settings, captions, data, tell)
    pipe = diffusers.AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        unet=train_clips(settings, captions, images, data, tell),
        motion_adapter=None,
        scheduler=parts.scheduler(),
    )
    pipe.save_pretrained(settings.output)
    words.backend_tokenizer.model.save(str(settings.output / "tokenizer"))  # vocab.json, merges.txt: older transformers


def main() -> None:
    """Train, with a progress bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_model"), help="folder of the pipeline")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints below --output")
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    for name in ("clips", "vae_steps", "image_steps", "clip_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Settings, name))
    options = vars(parser.parse_args())
    threads = options.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            told = "" if math.isnan(loss) else f", loss {loss:.4f}"
            bar.update(tasks[stage], completed=done, description=f"{stage}{told}")

        train(Settings(**options), tell)


if __name__ == "__main__":
    main()
