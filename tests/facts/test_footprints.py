"""Calls that a simulation of eager Python leaves out: it ends with the same peak as one that runs them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sicompiler.capture.like_calls import Results
from sicompiler.pipelines.eager import eager_peak_bytes
from sicompiler.pipelines.footprints import Footprints

Block = Callable[["Model", torch.Tensor], torch.Tensor]
TIMES = 3


class Model(nn.Module):
    """Does the same a few times, so that all but the first are known."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 64), nn.GroupNorm(4, 64)
        self.block, self.kept = block, list[torch.Tensor]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Blocks in a row."""
        for _ in range(TIMES):
            x = self.block(self, x)
        self.kept = []
        return x


def _plain(model: Model, x: torch.Tensor) -> torch.Tensor:
    return functional.silu(model.linear(x)) + x


def _keeps_what_it_has_read(model: Model, x: torch.Tensor) -> torch.Tensor:
    wide = x.repeat(1, 3)
    y = wide * 2
    z = y[:, :64] + 1
    del wide
    return z.cos()


def _collects_states(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.kept.append(model.linear(x))
    return model.kept[-1] if len(model.kept) < 2 else model.kept.pop(0) + x


def _writes_in_place(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y += 1
    y[:, :8] = 0
    y.mul_(2).clamp_(max=3)
    torch.add(y, 1, out=y)
    return functional.relu(y, inplace=True)


def _holds_all_by_a_part(model: Model, x: torch.Tensor) -> torch.Tensor:
    model.kept.append(x.repeat(8, 1)[:1])
    first, other = model.linear(x).chunk(2, dim=-1)
    return torch.cat([other, first], dim=-1)


def _takes_more_inside(model: Model, x: torch.Tensor) -> torch.Tensor:
    image = x.reshape(1, 64, -1, 4)
    large = functional.interpolate(image, scale_factor=2.0, mode="bilinear", antialias=True)
    return functional.avg_pool2d(model.norm(large), 2).reshape(x.shape)


def _attends(model: Model, x: torch.Tensor) -> torch.Tensor:
    heads = x.reshape(1, 4, -1, 16)
    return functional.scaled_dot_product_attention(heads, heads, heads).reshape(x.shape)


def _changes_layouts_in_place(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.t_()
    z = y * 2
    z.t_()
    z.data = x * 3
    z.unsqueeze_(0)
    return z.squeeze(0) + 1


def _is_given_what_it_has(model: Model, x: torch.Tensor) -> torch.Tensor:
    same = x.contiguous().to(torch.float32).float()
    assert same is x
    one, _ = torch.atleast_2d(same, same)
    assert one is x
    return one.expand(64, -1, -1)[0] + 1


def _pairs(model: Model, x: torch.Tensor) -> torch.Tensor:
    other: torch.Tensor
    one, other = torch.broadcast_tensors(x, x)
    assert one.untyped_storage()._cdata == other.untyped_storage()._cdata
    del one
    one, other = torch.broadcast_tensors(x, x.clone())
    assert one.untyped_storage()._cdata != other.untyped_storage()._cdata
    return other + 1


def _records_gradients(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        y: torch.Tensor = functional.gelu(model.linear(x)).exp().exp()
    return y.detach() * 2


def _casts_by_itself(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y: torch.Tensor = model.linear(x)
    return y.float()


def _makes_complex_ones(model: Model, x: torch.Tensor) -> torch.Tensor:
    turned = torch.view_as_complex(x.reshape(-1, 32, 2)).conj() * 1j
    return torch.view_as_real(turned.resolve_conj()).reshape(x.shape)


def _changes_the_default(model: Model, x: torch.Tensor) -> torch.Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if len(model.kept) % 2 else torch.float64)
    try:
        model.kept.append(torch.arange(4).to(x.device) / 2)
        return x + (x > 0) / 2
    finally:
        torch.set_default_dtype(before)


def _recomputes(model: Model, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = checkpoint(lambda z: functional.gelu(model.linear(z)) * 2, x, use_reentrant=False)
    return y


def _selects(model: Model, x: torch.Tensor) -> torch.Tensor:
    parts = [x[i : i + 64].sin() for i in range(0, 512, 64)]
    return torch.cat([*parts[::2], *parts[1::2]])[torch.arange(512)]


def _asks_what_it_is(model: Model, x: torch.Tensor) -> torch.Tensor:
    with torch.device("cpu"):
        zeros = torch.zeros(x.shape, dtype=x.dtype)
    y = x.masked_fill(zeros > 0, 0.0)
    return y.max(dim=0, keepdim=True).values + x if x.is_contiguous() else x


def _hands_out_what_lies_elsewhere(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.grad = x + 2
    kept = y.grad
    assert kept is not None
    y = y * 2
    return kept.sin() + y


def _hangs_a_tensor_on_another(model: Model, x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.beside = x.repeat(8, 1)  # type: ignore[attr-defined]
    z = y.contiguous() * 2
    del y
    return z.repeat(4, 1)[:512].clone()


BLOCKS: list[Block] = [
    _hangs_a_tensor_on_another,
    _plain,
    _keeps_what_it_has_read,
    _collects_states,
    _writes_in_place,
    _holds_all_by_a_part,
    _takes_more_inside,
    _attends,
    _changes_layouts_in_place,
    _is_given_what_it_has,
    _pairs,
    _records_gradients,
    _casts_by_itself,
    _makes_complex_ones,
    _changes_the_default,
    _recomputes,
    _selects,
    _asks_what_it_is,
    _hands_out_what_lies_elsewhere,
]


def _simulated(block: Block, device_type: str) -> tuple[int | None, Any]:
    """The peak of a model, and the layout of what it gives."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = Model(block).eval()
        x = torch.empty(512, 64)
    given: list[torch.Tensor] = []

    def call(x: torch.Tensor) -> None:
        given.append(model(x))

    peak = eager_peak_bytes(model, call, (x,), {}, device_type)
    layouts = [(y.shape, y.stride(), y.storage_offset(), y.dtype, y.untyped_storage().nbytes()) for y in given]
    return peak, layouts


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__.strip("_"))
def test_the_peak_is_that_of_all_calls_run(block: Block, device_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: list[Any] = []
    again = Results.again

    def counted(self: Results, *args: Any) -> Any:
        left_out.append(self)
        return again(self, *args)

    monkeypatch.setattr(Results, "again", counted)
    known = _simulated(block, device_type)
    monkeypatch.setattr(Footprints, "call", lambda self, func, args, kwargs: None)
    assert known == _simulated(block, device_type)
    assert known[0] is not None
    assert left_out


def test_a_tensor_is_what_its_class_makes() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.empty(4, 6)[1:, ::2]
    footprints = Footprints(mode)
    with torch.no_grad():
        call = footprints.call(torch.clone, (x,), {})
        assert call is not None
        with mode:
            first = torch.clone(x)
        footprints.learn(call, (x,), {}, first, 0, ())
        known = footprints.known(call)
        assert known is not None
        noted: list[torch.Tensor] = []
        made = known.results.again(call.operands, noted.append)
    assert type(made) is FakeTensor
    assert noted == [made]
    assert made.untyped_storage()._cdata != first.untyped_storage()._cdata
    assert made.__dict__ == first.__dict__
    assert (made.shape, made.stride(), made.device, made.dtype) == (
        first.shape,
        first.stride(),
        first.device,
        first.dtype,
    )
    assert torch._C._dispatch_keys(made).raw_repr() == torch._C._dispatch_keys(first).raw_repr()
    with pytest.raises(RuntimeError, match="data pointer"):
        made.data_ptr()


def test_functions_of_others_are_run() -> None:
    calls: list[int] = []

    @torch.library.custom_op("sicompiler_tests::counted", mutates_args=())
    def counted(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @counted.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        return x.new_empty(x.shape[0] * len(calls), *x.shape[1:])

    def grows(model: Model, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = counted(x)
        return result[: x.shape[0]]

    given = _simulated(grows, "cpu")[1]
    assert [layout[-1] for layout in given] == [TIMES * 512 * 64 * 4]
