"""Strides of fake values are those that kernels give: the pass against the kernels themselves, and what it is for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from sicompiler.api import prepare
from sicompiler.capture import capture, flatten_inputs
from sicompiler.compiler.planner import rewrite
from sicompiler.facts.storages import fake_tensors
from sicompiler.facts.strides import suggests_channels_last, view_strides
from sicompiler.passes.layouts import real_layouts
from sicompiler.testing.checks import run_budgets


class Applied(nn.Module):
    """A function of one tensor as a module; a convolution behind it reads what it gives."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def channels_last(*shape: int) -> torch.Tensor:
    """A dense tensor with its channels innermost, and the strides that `permute` leaves for a batch of one."""
    n, c, *rest = shape
    return torch.randn(n, *rest, c, dtype=torch.float64).movedim(-1, 1)


CALLS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, ...]]] = {
    "reflect": (lambda x: F.pad(x, (0, 0, 1, 1, 0, 0), mode="reflect"), (2, 4, 3, 5, 4)),
    "replicate": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate"), (1, 4, 3, 5, 4)),
    "constant": (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), (1, 6, 5, 4)),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), (2, 6, 5, 4)),
    "roll": (lambda x: torch.roll(x, 1, 1), (3, 8, 2, 3)),
    "roll twice": (lambda x: torch.roll(x, (2, 1), (2, 3)), (1, 3, 4, 5)),
    "roll flat": (lambda x: torch.roll(x, 1), (2, 3, 4, 5)),
    "cat": (lambda x: torch.cat([x[:, :, :1], x], 2), (1, 8, 4, 6, 5)),
    "cat of one channel": (lambda x: torch.cat([x[:, :1], x], 1), (3, 5, 2, 7, 3)),
    "transposed": (lambda x: F.conv_transpose2d(x, torch.ones(3, 2, 3, 3).to(x)), (1, 3, 5, 4)),
    "einsum": (lambda x: torch.einsum("nchw,dc->ndhw", x, torch.ones(4, 4).to(x)), (5, 4, 2, 1)),
    "unflatten": (lambda x: x.unflatten(0, (1, 1)).movedim(2, -1).unflatten(-1, (-1, 2)), (1, 8, 4, 2)),
    "flatten": (lambda x: x[None].flatten(0, 1).flatten(2, 2), (1, 4, 5, 4)),
    "zeros_like": (lambda x: torch.zeros_like(x.movedim(2, 0)[None]), (1, 6, 5, 1)),
    "layer_norm": (lambda x: F.layer_norm(x.mT, [1]), (3, 1, 1, 4)),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 1.0), (1, 4, 3, 2)),
    "batch_norm": (lambda x: F.batch_norm(x[..., 0], torch.ones(8).to(x), torch.ones(8).to(x)), (6, 8, 4, 1)),
    "index": (lambda x: x.reshape(x.shape)[:, torch.arange(6).flip(0)], (1, 6, 2, 7)),
    "index twice": (lambda x: x[torch.zeros(3, dtype=torch.int64), :, torch.arange(3)], (1, 6, 3, 7)),
    "slice_scatter": (lambda x: torch.slice_scatter(x[:, 1:3], x[:, :1], 1, 0, 1), (2, 4, 3, 1)),
    "select_scatter": (lambda x: torch.select_scatter(x[:, 1:], x[:, 0], 1, 2), (2, 4, 3, 5)),
    "transposed in 3-D": (lambda x: F.conv_transpose3d(x, torch.ones(5, 2, 1, 1, 1).to(x)), (2, 5, 4, 3, 2)),
    "nearest to one position": (lambda x: F.interpolate(x, size=(1, 1)), (2, 4, 3, 2)),
    "bilinear to one position": (lambda x: F.interpolate(x, size=(1, 1), mode="bilinear"), (1, 4, 1, 2)),
    "trilinear to one position": (lambda x: F.interpolate(x, size=(1, 1, 1), mode="trilinear"), (2, 4, 3, 1, 2)),
    "nearest in 3-D": (lambda x: F.interpolate(x[None, 0], scale_factor=(1, 2, 2)), (2, 4, 2, 1, 1)),
    "nearest in 1-D": (lambda x: F.interpolate(x[None, 0, ..., 0], size=1), (2, 4, 3, 1)),
    "groups of one position": (lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3).to(x), padding=1, groups=4), (2, 4, 1, 1)),
    "half in 3-D": (lambda x: F.conv3d(x.bfloat16(), torch.ones(4, 4, 1, 1, 1).bfloat16()), (1, 4, 1, 3, 2)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (1, 4, 1, 3)),
    "unfold": (lambda x: F.unfold(x[None, 0], 1), (2, 4, 3, 2)),
    "glu": (lambda x: F.glu(x, 1), (1, 8, 1, 1)),
    "prelu": (lambda x: F.prelu(x[None, 0], torch.ones(4).to(x)), (2, 4, 3, 1)),
    "stack": (lambda x: torch.stack([x, x], 1), (1, 8, 1, 3)),
    "stack of rows": (lambda x: torch.stack([x, x], 2), (8, 4, 1, 4)),
    "stack behind all": (lambda x: torch.stack([x, x], -1), (2, 4, 1, 3)),
    "sort": (lambda x: torch.sort(x[None, 0], 1)[1], (2, 8, 2, 1)),
    "flip": (lambda x: x[None, 0].flip(1), (2, 8, 1, 3)),
    "tril": (lambda x: x[None, 0].mT.tril(), (2, 8, 1, 3)),
    "rms_norm": (lambda x: F.rms_norm(x, [1]), (1, 8, 1, 1)),
    "batch_norm of one": (lambda x: F.batch_norm(x, torch.ones(8).to(x), torch.ones(8).to(x)), (1, 8, 1, 1)),
    "views": (lambda x: x.reshape(1, 1, *x.shape).view(x.shape), (1, 3, 5, 4)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "row-major"])
def test_fake_strides_are_those_of_the_kernel(name: str, last: bool) -> None:
    function, shape = CALLS[name]
    x = channels_last(*shape) if last else torch.randn(shape, dtype=torch.float64)
    program = capture(Applied(function), (x,), {})
    real_layouts(program)
    values: dict[torch.fx.Node, Any] = dict(
        zip(program.placeholders, program.arguments(Applied(function), flatten_inputs((x,), {})[0]), strict=True)
    )
    for node in program.graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        values[node] = node.target(*args, **kwargs)
        if isinstance(values[node], torch.Tensor):
            fake, real = fake_tensors(node)[0], values[node]
            assert fake.stride() == real.stride(), f"{node.target} of {x.shape} {x.stride()}"
            assert fake.untyped_storage().nbytes() == real.untyped_storage().nbytes(), node.target


def test_strides_of_views_are_those_of_torch() -> None:
    generator = random.Random(0)
    seen = 0
    for shape in itertools.product((1, 2, 3), (1, 4), (1, 2), (1, 3)):
        order = list(range(4))
        generator.shuffle(order)
        x = torch.randn(shape).permute(order)
        sizes = [size for size in x.shape if size > 1 or generator.random() < 0.5]
        sizes[generator.randrange(len(sizes) + 1) : 0] = [1]
        if len(sizes) > 2 and generator.random() < 0.5:
            sizes[:2] = [sizes[0] * sizes[1]]
        ours = view_strides((tuple(x.shape), x.stride()), sizes)
        try:
            theirs = x.view(sizes).stride()
        except RuntimeError:
            theirs = None
        assert ours == theirs, f"{tuple(x.shape)} {x.stride()} as {sizes}"
        seen += theirs is not None
    assert seen > 20


def _odd(generator: random.Random, shape: list[int]) -> torch.Tensor:
    """A tensor with its dims in some order, narrowed or not, and any strides in dims of one entry."""
    order = generator.sample(range(len(shape)), len(shape))
    stored = [size * generator.choice((1, 1, 1, 2)) for size in shape]
    x = torch.randn([stored[d] for d in order], dtype=torch.float64).permute(
        [order.index(d) for d in range(len(shape))]
    )
    x = x[tuple(slice(size) for size in shape)]
    stride = [generator.choice(x.stride()) if size == 1 else st for size, st in zip(shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, stride)


POINTWISE: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
    lambda x, y: F.gelu(x),
    lambda x, y: 2 * x,
    lambda x, y: x - y,
    lambda x, y: y / x,
    lambda x, y: torch.addcmul(y, x, x),
    lambda x, y: torch.where(x > 0, x, y),
    lambda x, y: x.clone(),
    lambda x, y: torch.lerp(x, y, 0.25),
)


class Pointwise(nn.Module):
    """All of these functions of two tensors."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(x, y) for function in POINTWISE)


@pytest.mark.parametrize("part", range(4))
def test_pointwise_results_lie_as_the_iterator_of_torch_lays_them(part: int) -> None:
    generator = random.Random(part)
    for _ in range(8):
        shape = [generator.choice((1, 1, 2, 3)) for _ in range(generator.choice((3, 4, 4, 5)))]
        x, y = _odd(generator, shape), _odd(generator, [generator.choice((1, size, size)) for size in shape])
        program = capture(Pointwise(), (x, y), {})
        real_layouts(program)
        fakes = [fake_tensors(node)[0] for node in program.graph_module.graph.output_node().all_input_nodes]
        for number, (fake, real) in enumerate(zip(fakes, Pointwise()(x, y), strict=True)):
            assert fake.stride() == real.stride(), f"{number} of {shape} {x.stride()} and {y.shape} {y.stride()}"


def test_memory_formats_are_suggested_as_torch_does() -> None:
    for x in (channels_last(2, 3, 4, 5), channels_last(1, 3, 4, 5), torch.ones(2, 1, 4, 5), torch.ones(1, 3, 1, 1)):
        kernel = torch.cat([x, x], 0)  # follows its operands
        assert suggests_channels_last((tuple(x.shape), x.stride())) == (not kernel.is_contiguous()), x.stride()


class PaddedVideo(nn.Module):
    """A 3-d convolution of a video that lies channels-last, padded by reflection: row-major by its fake tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(16, 16, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> Any:
        return self.conv(x.movedim(-1, 1))


def test_a_convolution_behind_a_padding_stays_below_its_prediction() -> None:
    module = PaddedVideo().double().eval().requires_grad_(False)
    outcomes = run_budgets(module, (torch.randn(2, 4, 12, 12, 16, dtype=torch.float64),), {})
    assert [line for outcome in outcomes for line in outcome.problems()] == []


class Line(nn.Module):
    """Mixes channels of images one pixel wide."""

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.einsum("nchw,cd->ndhw", x, torch.arange(16, dtype=x.dtype).view(4, 4))
        return torch.cat(y.chunk(2, 1), 1)


class WrittenWithin(nn.Module):
    """Writes into slices of slices: each of them is cloned with all that lies behind it."""

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.zeros_like(x)
        y[:, :1, :-1] = x[:, :1, 1:]
        y[:, 1:2, 1:] = x[:, 1:2, :-1]
        return y * 2


class Frames(nn.Module):
    """Frames of a permuted video, each of them channels-last, though a batch of one says nothing of it."""

    def forward(self, x: torch.Tensor) -> Any:
        mixed = torch.einsum("bnc,oc->bno", x, torch.ones(16, 16, dtype=x.dtype))
        frames = mixed.unflatten(1, (5, 20, 20)).permute(0, 1, 4, 2, 3).flatten(0, 1)
        return F.silu(F.pad(frames, (1, 1, 1, 1), mode="reflect"))


class Narrower(nn.Module):
    """A transposed convolution in 3-D whose result is smaller than its input, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return F.silu(self.conv(x)).softmax(-1)


class Sorted(nn.Module):
    """Values of a sort, whose indices nobody reads, written slice by slice while statistics are taken of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm((2 * x.expand(8, 4, 24, 4)).sort(-1).values.sort(-1).values)


class OneToken(nn.Module):
    """Attention of one token: what copies the heads of a batch gives a view of all three projections of one entry."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(6, 18), nn.RMSNorm(2)

    def forward(self, x: torch.Tensor) -> Any:
        q, k, v = (t.transpose(1, 2).contiguous() for t in self.qkv(x).unflatten(-1, (3, 3, 2)).unbind(2))
        y = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v).transpose(1, 2).flatten(2)
        return (x + y).cumsum(0)  # along the batch, so that the whole is no outer loop


class Padded(nn.Module):
    """Columns of a video whose channels are innermost, in no format of torch's, though each column passes for one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 6), nn.Conv3d(6, 6, (3, 1, 1))

    def forward(self, x: torch.Tensor) -> Any:
        video = self.linear(torch.roll(x, 1, 1)).transpose(1, -1)
        return self.conv(F.pad(video, (0, 0, 0, 0, 2, 0), mode="replicate")).softmax(-1).cumsum(1)


class Blurred(nn.Module):
    """A depthwise convolution of innermost channels in no format, though slices pass for one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(torch.einsum("nwhc,oc->nwho", x, torch.ones(6, 6, dtype=x.dtype)).transpose(1, -1))
        return (y - y.mean(1, keepdim=True)).cumsum(0)


class Shifted(nn.Module):
    """One channel of each frame shifted in time: alone it is row-major too, and what it is joined to decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        video = F.layer_norm(x.cumsum(0), (6,)).movedim(-1, 1)  # along the batch, so that the whole is no outer loop
        video = F.silu(torch.cat([torch.roll(video[:, :1], 1, 2), video[:, 1:]], 1))
        return self.conv(video.transpose(1, 2).flatten(0, 1))


class PaddedFrames(nn.Module):
    """Frames in the batch are padded in time: most slices of frames have nothing to add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, (2, 3, 3), padding=(0, 1, 1))

    def forward(self, x: torch.Tensor) -> Any:
        frames = (x + x.mean(-1, keepdim=True))[None].transpose(1, 2)
        return torch.sigmoid(self.conv(F.pad(frames, (0, 0, 0, 0, 1, 0))))


class Doubled(nn.Module):
    """Joins two dims that the kernel of the stack before them has laid apart, which copies."""

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.einsum("nchw,oc->nohw", x, torch.arange(16, dtype=x.dtype).view(4, 4))
        return torch.stack([y, y * 0.5], 2).flatten(1, 2) + 1


class OverFrames(nn.Module):
    """A norm over frames as signals: a last slice of one frame is row-major, and takes another kernel than others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 16)

    def forward(self, x: torch.Tensor) -> Any:
        frames = torch.cat([x, x], 2).view(1, 5, 5, 7, 16).permute(0, 2, 3, 4, 1)
        return self.norm(frames.reshape(35, 16, 5)).relu_()


class OneImage(nn.Module):
    """Channels mixed by an einsum, which multiplies one image in another way than several; then normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> Any:
        mixed = torch.einsum("nchw,oc->nohw", x + x.mean(1, keepdim=True), torch.ones(6, 6, dtype=x.dtype).tril())
        return self.norm(mixed.movedim(1, -1).reshape(1, 30, 6)).flatten(0, 1).cumsum(0)


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "slices of slices": (WrittenWithin(), (1, 6, 4, 7, 3)),
    "frames": (Frames(), (1, 2000, 16)),
    "blurred": (Blurred(), (6, 3, 1, 6)),
    "one token": (OneToken(), (2, 1, 6)),
    "narrower": (Narrower(), (1, 8, 2, 3, 4)),
    "sorted": (Sorted(), (8, 4, 1, 4)),
    "padded frames": (PaddedFrames(), (6, 2, 1, 4)),
    "one image": (OneImage(), (3, 6, 5, 2)),
    "over frames": (OverFrames(), (1, 175, 8)),
    "doubled rows": (Doubled(), (8, 4, 1, 4)),
    "pixels in a line": (nn.Sequential(Line(), nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 3, padding=1)), (15, 4, 2, 1)),
}


@pytest.mark.parametrize("name", MODULES)
def test_plans_stay_below_their_prediction(name: str) -> None:
    module, shape = MODULES[name]
    outcomes = run_budgets(module.double().eval(), (torch.randn(shape, dtype=torch.float64),), {}, offload=True)
    assert [line for outcome in outcomes for line in outcome.problems()] == []


def test_fetched_slices_keep_their_format() -> None:
    inputs = (torch.randn(1, 5, 1, 1, 4, dtype=torch.float64),)
    outcomes = run_budgets(Padded().double().eval(), inputs, {}, offload=True)
    assert any(outcome.plan.spilled and outcome.plan.regions for outcome in outcomes)
    assert [line for outcome in outcomes for line in outcome.problems()] == []


class AsPlanned(fx.Interpreter):
    """Runs the body of a loop, and looks where its values lie."""

    def run_node(self, n: fx.Node) -> Any:
        value, planned = super().run_node(n), n.meta.get("val")
        if isinstance(planned, torch.Tensor):
            assert value.stride() == planned.stride(), n.format_node()
        return value


def test_values_in_loops_lie_as_kernels_lay_them() -> None:
    inputs = (torch.randn(3, 5, 4, 1, 6, dtype=torch.float64),)
    _, planner = prepare(Shifted().double().eval().requires_grad_(False), inputs, {})
    program = rewrite(planner.analysis, planner.plan(planner.floor()[0]))
    bodies = [body for body in program.graph_module.children() if isinstance(body, fx.GraphModule)]
    assert len(bodies) == 2
    for body in bodies:
        values = [node.meta["val"] for node in body.graph.find_nodes(op="placeholder")]
        AsPlanned(body).run(*(v if isinstance(v, int) else _real(v) for v in values))


def _real(fake: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype).fill_(1)
