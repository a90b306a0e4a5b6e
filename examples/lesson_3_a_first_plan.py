"""Lesson 3: a first plan. Name a budget, read the plan, run it, compare, keep it as JSON.

The model is one block of a video network: residual convolutions with norms over the whole video, attention over the
pixels of each frame, and a feed-forward part four times as wide. `compile_for_budget` changes how the model runs, not
what it computes, and it changes it in place: same object, same parameters, same signature. `release` undoes it.

The budget counts weights, inputs, activations and the workspace of kernels. A number means GiB; a string is read by its
unit. If no plan fits, `OverBudget` says so before anything runs, and names the smallest budget that works.

Run it: `python examples/lesson_3_a_first_plan.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

import sicompiler


class Block(nn.Module):
    """Video frames [f, c, h, w] -> the same."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)])
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)])
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)
        self.norm_1, self.norm_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, frames: Tensor) -> Tensor:
        hidden: Tensor = frames
        for norm, conv in zip(self.norms, self.convs, strict=True):
            video = norm(hidden.transpose(0, 1).unsqueeze(0))  # over all frames, as temporal layers do
            hidden = conv(silu(video.squeeze(0).transpose(0, 1)))
        frames = frames + hidden
        tokens = frames.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm_1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.out(scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2))
        value, gate = self.up(self.norm_2(tokens)).chunk(2, dim=-1)
        tokens = tokens + self.down(value * gelu(gate))
        result: Tensor = tokens.transpose(1, 2).unflatten(-1, frames.shape[2:])
        return result


def main() -> None:
    torch.manual_seed(0)
    model, frames = Block(32).eval(), torch.randn(8, 32, 24, 24)
    with torch.no_grad():
        expected = model(frames)

    # Too small a budget is refused now, before anything runs. The error holds the floor as a number.
    try:
        sicompiler.compile_for_budget(model, "1MiB", example_inputs=((frames,), {}))
    except sicompiler.OverBudget as error:
        print(f"refused: {error}\n")
        floor_bytes = error.floor_bytes

    # A budget that works: a quarter above the floor. With example inputs it is planned now, else at the first call.
    sicompiler.compile_for_budget(model, f"{1.25 * floor_bytes:.0f} B", example_inputs=((frames,), {}))
    print(sicompiler.report(model))

    # Called as before. `verify` runs one call both ways and measures both peaks.
    largest = float((model(frames) - expected).abs().max())
    print(f"largest difference {largest:.2g} at values up to {float(expected.abs().max()):.2g}")
    found = sicompiler.verify(model, ((frames,), {}))
    print(found)

    # A plan is a value. Out as JSON, in again, equal; and it spares the planning next time.
    plan = sicompiler.report(model).plan
    assert plan is not None
    again = sicompiler.Plan.from_json(plan.to_json())
    print(f"{len(plan.to_json())} characters of JSON, read back equal: {again == plan}")
    sicompiler.release(model)
    sicompiler.compile_for_budget(model, f"{plan.budget_bytes} B", plan=again)
    print(f"same output from the plan read back: {bool(((model(frames) - expected).abs() <= largest).all())}")
    sicompiler.release(model)
    print(f"released, and bit for bit as before: {torch.equal(model(frames), expected)}")


if __name__ == "__main__":
    main()
