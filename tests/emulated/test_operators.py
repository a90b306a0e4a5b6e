"""Operators give what the CPU gives, bit by bit, in every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.emulated import accelerator
from tests.emulated.accelerator import ORDERS, Order

IMAGE = (2, 8, 16, 16)


def _draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        (_draw(*IMAGE), _draw(12, 8, 3, 3), _draw(12)),
    ),
    "conv3d": (F.conv3d, (_draw(1, 4, 5, 6, 6), _draw(6, 4, 3, 1, 1))),
    "conv2d, channels last": (
        F.conv2d,
        (_draw(*IMAGE).to(memory_format=torch.channels_last), _draw(12, 8, 3, 3)),
    ),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (_draw(*IMAGE), _draw(8, 5, 2, 2))),
    "group_norm": (lambda x, w: F.group_norm(x, 4, w), (_draw(*IMAGE), _draw(8))),
    "layer_norm": (lambda x: F.layer_norm(x, (16,)), (_draw(*IMAGE),)),
    "rms_norm": (lambda x: F.rms_norm(x, (16,)), (_draw(*IMAGE),)),
    "attention": (lambda q: F.scaled_dot_product_attention(q, q, q), (_draw(2, 4, 33, 16),)),
    "attention, masked": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m),
        (_draw(2, 4, 33, 16), _draw(33, 33)),
    ),
    "linear": (F.linear, (_draw(5, 7, 16), _draw(9, 16))),
    "activations": (lambda x: F.softmax(F.gelu(F.silu(x)), -1), (_draw(*IMAGE),)),
    "cat and stack": (
        lambda x: torch.stack([torch.cat([x, x * 2], 1), torch.cat([x, x - 1], 1)]),
        (_draw(*IMAGE),),
    ),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0), (_draw(*IMAGE),)),
    "interpolate, bilinear": (lambda x: F.interpolate(x, size=(9, 9), mode="bilinear"), (_draw(*IMAGE),)),
    "pad": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), (_draw(*IMAGE),)),
    "pools": (lambda x: (F.max_pool2d(x, 2), F.avg_pool2d(x, 2)), (_draw(*IMAGE),)),
    "views": (
        lambda x: x.permute(0, 2, 3, 1).reshape(2, -1, 8).transpose(1, 2).unfold(2, 4, 4)[:, :, 1:3].contiguous(),
        (_draw(*IMAGE),),
    ),
    "chunks": (lambda x: x.chunk(2, 1), (_draw(*IMAGE),)),
    "index": (lambda x, i: x[:, i], (_draw(*IMAGE), torch.tensor([1, 3, 3]))),
    "index of the host": (lambda x: x[:, torch.tensor([1, 3])], (_draw(*IMAGE),)),
    "shapes that depend on values": (lambda x: ((x > 0).nonzero(), x[x > 1]), (_draw(*IMAGE),)),
    "sorting": (lambda x: (*x.topk(3), *x.sort(-1)), (_draw(*IMAGE),)),
    "half": (lambda x: F.silu(x.half()) @ x.half().mT, (_draw(*IMAGE),)),
    "bfloat16": (lambda x, w: F.conv2d(x.bfloat16(), w.bfloat16()), (_draw(*IMAGE), _draw(12, 8, 3, 3))),
    "in place": (lambda x: x.clone().add_(1).mul_(2).clamp_(min=0), (_draw(*IMAGE),)),
    "reductions": (lambda x: (x.sum(1), x.mean(), x.std(-1), x.var(0)), (_draw(*IMAGE),)),
    "where and cumsum": (lambda x: torch.where(x > 0, x, 0.0).cumsum(-1), (_draw(*IMAGE),)),
    "einsum": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), (_draw(*IMAGE),)),
    "complex": (
        lambda x: torch.view_as_real(torch.view_as_complex(x.view(2, 8, 16, 8, 2)) * (1 + 2j)),
        (_draw(*IMAGE),),
    ),
    "fft": (lambda x: torch.fft.fftn(x, dim=(-2, -1)).real.contiguous(), (_draw(*IMAGE),)),
    "made on the device": (
        lambda x: torch.arange(5, device=x.device) * torch.full((5,), 2, device=x.device),
        (_draw(*IMAGE),),
    ),
    "an empty out": (lambda x: torch.add(x, x, out=torch.empty(0, device=x.device)), (_draw(*IMAGE),)),
    "lerp and addcmul": (lambda x: torch.lerp(x, x + 1, 0.3).addcmul(x, x, value=0.5), (_draw(*IMAGE),)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (_draw(*IMAGE),)),
}


def _results(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        results = call(*arguments)
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("order", ["sync", "side-last"])
def test_an_operator_gives_what_the_cpu_gives(name: str, order: Order) -> None:
    accelerator.configure(order=order)
    call, arguments = CALLS[name]
    expected = _results(call, arguments)
    got = _results(call, tuple(argument.to("emu") for argument in arguments))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.device.type == "emu"
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        assert torch.equal(one.cpu(), other)


class SmallUNet(nn.Module):
    """Convolutions, group norm, attention, layer norm, a linear layer, interpolation and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.before = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.leave = nn.Conv2d(64, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.enter(x)
        h = F.silu(self.norm(self.down(skip)))
        batch, channels, height, width = h.shape
        tokens = self.before(h.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).view(batch, -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        h = F.interpolate(tokens.transpose(1, 2).reshape(batch, channels, height, width), scale_factor=2.0)
        return torch.as_tensor(self.leave(torch.cat([h, skip], dim=1)))


@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_a_model_gives_what_the_cpu_gives(order: Order, poison: bool) -> None:
    torch.manual_seed(0)
    model, x = SmallUNet().eval(), _draw(2, 4, 24, 24)
    with torch.inference_mode():
        expected = model(x)
        accelerator.configure(order=order, poison=poison)
        model.to("emu")
        waits = accelerator.host_waits()
        assert torch.equal(model(x.to("emu")).cpu(), expected)
    assert accelerator.host_waits() == waits  # nothing in it makes the host wait


def test_gradients() -> None:
    """All but those of attention, which is one kernel here that autograd knows nothing of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    x = _draw(2, 4, 10, 10)
    model(x).square().mean().backward()
    expected = [torch.as_tensor(parameter.grad).clone() for parameter in model.parameters()]
    model.zero_grad()
    model.to("emu")
    model(x.to("emu")).square().mean().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(parameter.grad).cpu(), gradient)


def test_export_sees_the_device_and_runs_on_it() -> None:
    torch.manual_seed(0)
    model, x = SmallUNet().eval(), _draw(2, 4, 24, 24)
    with torch.inference_mode():
        expected = model(x)
    model.to("emu")
    with torch.no_grad():
        program = torch.export.export(model, (x.to("emu"),))
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert {str(value.device) for value in values if isinstance(value, torch.Tensor)} == {"emu:0"}
    with torch.inference_mode():
        assert torch.equal(program.module()(x.to("emu")).cpu(), expected)


def test_random_numbers_are_the_hosts() -> None:
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    assert torch.equal(torch.randn(5, device="emu").cpu(), expected)
    drawn = torch.randn(4, device="emu", generator=torch.Generator("emu").manual_seed(1))
    assert drawn.shape == (4,)


def test_storages_move_grow_and_shrink() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    parameter.data = torch.zeros(4, 4, device="emu")
    assert parameter.device.type == "emu"
    assert parameter.sum().item() == 0

    held = torch.ones(1 << 20, device="emu")
    held.untyped_storage().resize_(0)
    assert torch.accelerator.memory_allocated() == 512
    assert torch.ones(2, device="emu").resize_(6)[:2].sum().item() == 2

    base = torch.arange(6, device="emu")
    view = torch.empty(0, dtype=base.dtype, device="emu").set_(base.untyped_storage(), 2, (2, 2), (2, 1))
    assert view.tolist() == [[2, 3], [4, 5]]
