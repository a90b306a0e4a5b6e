"""Lesson 4: Stable Video Diffusion's UNet under a budget.

The class is the real one, `diffusers.UNetSpatioTemporalConditionModel`, with every kind of block it has: down, middle
and up, with and without cross-attention, spatial and temporal layers, skip connections. Only the sizes are small, and
the weights are random, so that this runs in seconds on any machine.

The full-size plan takes no more memory than this one, for planning needs shapes and no weights:

    sicompiler plan svd --gb 11                          the published size, 14 frames of 1024x576 in float16
    sicompiler explain svd                               what is alive at the peak, what sets the floor
    sicompiler plan svd --frames 25 --gb 8 --json        other sizes, for machines

and with the weights on a card, `sicompiler.compile_for_budget(pipe.unet, gb=11)` before the first call is all there is
to do.

Run it: `python examples/lesson_4_svd_under_a_budget.py`. It needs the extra `[diffusers]`.
"""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel

import sicompiler

BLOCKS = {
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}
BUDGET = "9 MiB"
FRAMES, HEIGHT, WIDTH = 6, 24, 32  # height and width of the latents, an eighth of those in pixels


def main() -> None:
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        **BLOCKS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=32,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    ).eval()
    latents = torch.randn(1, FRAMES, 8, HEIGHT, WIDTH)
    image = torch.randn(1, 1, 32)
    times = torch.tensor([[6.0, 127.0, 0.02]])
    call = ((latents, torch.tensor(0.7), image), {"added_time_ids": times, "return_dict": False})

    sicompiler.compile_for_budget(unet, BUDGET, example_inputs=call)
    report = sicompiler.report(unet)
    print(report)

    found = sicompiler.verify(unet, call)
    print(found)
    plan = report.plan
    assert plan is not None
    saved = 1 - found.measured_peak_bytes / found.untouched_peak_bytes
    print(f"{len(plan.regions)} loops, measured peak {saved:.0%} below that of the untouched model")

    # Nothing was replaced: configuration, attributes and parameters are those of diffusers, and so is saving.
    print(f"still {type(unet).__name__} with {unet.config.layers_per_block} layer a block")


if __name__ == "__main__":
    main()
