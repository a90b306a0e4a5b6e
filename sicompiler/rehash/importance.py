"""What an error of the denoiser at one evaluation does to the final latents, by the scheduler alone."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch

from sicompiler.planners.skip_schedule import Floats

log = logging.getLogger("sicompiler")

PROBE = 1e-3  # size of the disturbance: schedulers are linear around zero, clipping and thresholds are far away


def scheduler_importance(scheduler: Any) -> Floats:
    """How far the final latents move when the output of one evaluation moves by one.

    Every scheduler is a chain of linear combinations of latents and outputs, so it is run on numbers with all outputs
    zero but one. The denoiser's own answer to the moved latents is left out: it is unknown, and trained denoisers damp.

    Args:
        scheduler: with its timesteps set; it is copied, and torch's random state is put back.

    Returns:
        [evaluations]; ones, with a warning, for a scheduler whose step can't be called this way.
    """
    count = len(scheduler.timesteps)
    try:
        with torch.random.fork_rng(devices=[]):
            base = _final(scheduler, count, None)
            return np.array([abs(_final(scheduler, count, step) - base) / PROBE for step in range(count)])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        log.warning("Step Rehash takes all steps of %s to weigh the same: %s", type(scheduler).__name__, error)
        return np.ones(count)


def _final(scheduler: Any, count: int, moved: int | None) -> float:
    probe = copy.deepcopy(scheduler)
    probe.__dict__.pop("step", None)  # a loop counts steps there
    if getattr(probe.config, "clip_sample", False):
        probe.register_to_config(clip_sample=False)  # noise of size one would be cut off, and what is probed with it
    torch.default_generator.manual_seed(0)  # of the CPU only: that of a GPU is the user's
    latents = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for step in range(count):
        output = torch.full_like(latents, PROBE if step == moved else 0.0)
        time = probe.timesteps[step]
        if hasattr(probe, "scale_model_input"):
            probe.scale_model_input(latents, time)  # some schedulers find their place by it
        latents = probe.step(output, time, latents, return_dict=False)[0]
    return float(latents.double())


def evaluation_times(scheduler: Any) -> tuple[float, ...]:
    """Where each evaluation stands, for extrapolation: logarithms of noise levels, else shares of the run."""
    count = len(scheduler.timesteps)
    shares = tuple(i / max(count - 1, 1) for i in range(count))
    steps = [float(t) for t in scheduler.timesteps]
    sigmas = getattr(scheduler, "sigmas", None)
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if sigmas is not None and len(sigmas) >= count:
        levels = [float(s) for s in sigmas[:count]]
    elif cumulative is not None:
        alphas = [float(cumulative[min(max(round(t), 0), len(cumulative) - 1)]) for t in steps]
        levels = [((1 - a) / a) ** 0.5 if a > 0 else 0.0 for a in alphas]  # a terminal SNR of zero has no logarithm
    else:
        return shares
    if any(level <= 0 for level in levels):
        return shares
    return tuple(float(np.log(level)) for level in levels)


def scheduler_line(scheduler: Any) -> str:
    """Class and configuration of a scheduler in one line; what varies from version to version of diffusers left out."""
    config = {k: v for k, v in sorted(dict(scheduler.config).items()) if not k.startswith("_") and v is not None}
    return f"{type(scheduler).__name__}({', '.join(f'{k}={v}' for k, v in config.items())})"
