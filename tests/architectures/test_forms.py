"""Closed forms: what four captures say of every other size is what a capture and a full search there say."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional

from sicompiler.errors import OverBudget
from sicompiler.scaling.form import Point, Polynomial, fit, symbols, tells_apart
from sicompiler.scaling.peak import closed_peak, evaluate, lattice
from sicompiler.scaling.points import choose_points
from sicompiler.scaling.sized import FittedModel, SizedCall, SizedModel
from sicompiler.scaling.template import DifferentGraph
from tests.zoo import method_of, tiny

F, H, W = symbols()
POINTS = ((9, 40, 72), (3, 8, 16), (5, 32, 16), (7, 16, 56))


class Block(nn.Module):
    """Convolutions at two resolutions, a norm over the whole video, attention of pixels, frames joined to a text."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.into = nn.GroupNorm(4, 16), nn.Conv2d(16, 32, 3, padding=1)
        self.down, self.out = nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.qkv, self.feed = nn.Linear(16, 48), nn.Linear(16, 64)
        self.back, self.text = nn.Linear(64, 16), nn.Parameter(torch.ones(1, 5, 16))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Run the block on a video [f, 16, h, w]."""
        frames, channels, height, width = video.shape
        x = self.norm(video.transpose(0, 1)[None])[0].transpose(0, 1)
        x = self.out(functional.interpolate(self.down(functional.silu(self.into(x))), scale_factor=2.0)) + video
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(2, (2, 8)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        tokens = tokens + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        joined = torch.cat([self.text, tokens.reshape(1, -1, channels)], 1)
        joined = joined + self.back(functional.gelu(self.feed(joined)))
        found: torch.Tensor = joined[:, 5:].reshape(frames, height, width, channels)
        return found


def sized_model(name: str, device: str = "cuda") -> SizedModel:
    def make(point: Point) -> SizedCall:
        frames, height, width = point
        if name == "block":
            return SizedCall(Block().half().eval(), (torch.zeros(frames, 16, height, width).half(),), {}, "forward")
        module, args, kwargs = tiny(name, frames=frames, height=height, width=width, dtype=torch.float16)
        return SizedCall(module, args, kwargs, method_of(name))

    return SizedModel(name, make, device, lambda *_: None)


@functools.cache
def learned_model(name: str, device: str = "cuda") -> tuple[SizedModel, FittedModel]:
    model = sized_model(name, device)
    return model, model.learn(POINTS)


# Forms


@pytest.mark.pure
@pytest.mark.parametrize(
    "expression", [7, F, 2 * F, H / 8, F * H * W / 4 + 226, H + 2, 8 * F * H * W - 4 * H * W, F * H + W], ids=str
)
def test_a_form_gives_every_number_back(expression: sympy.Expr) -> None:
    expression = sympy.sympify(expression)
    values = [int(expression.subs(dict(zip((F, H, W), p, strict=True)))) for p in POINTS]
    found = fit(POINTS, values)
    assert found is not None
    assert sympy.expand(found.symbolic() - expression) == 0
    for point in ((5, 24, 48), (14, 72, 128)):
        assert found.at(point) == evaluate(expression, point)


@pytest.mark.pure
def test_what_is_no_form_is_not_found() -> None:
    assert fit(POINTS, [p[0] ** 2 for p in POINTS]) is None
    assert fit(POINTS, [1, 2, 3, 5]) is None


@pytest.mark.pure
def test_sizes_that_give_no_whole_number_are_outside_of_a_form() -> None:
    eighth = Polynomial((((1,), Fraction(1, 8)),))
    assert eighth.at((1, 72, 1)) == 9
    assert eighth.at((1, 60, 1)) is None


@pytest.mark.pure
@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ([(14, 72, 128), (25, 40, 72)], (1, 8, 8)),
        ([(14, 72, 128)], (1, 8, 8)),
        ([(14, 72, 72), (25, 72, 72)], (1, 8, 8)),
        ([(14, 72, 128), (14, 40, 72)], (0, 8, 8)),
        ([(256, 1, 1), (64, 1, 1)], (1, 0, 0)),
    ],
)
def test_points_to_capture_hold_the_corners_and_tell_forms_apart(wanted: list[Point], steps: Point) -> None:
    points = choose_points(wanted, steps)
    assert points is not None
    assert len(set(points)) == len(points) >= 4
    high, low = (tuple(f(p[axis] for p in wanted) for axis in range(3)) for f in (max, min))
    assert points[0] == high
    assert low in points
    free = {axis for axis, step in enumerate(steps) if step}
    assert tells_apart(points[:4], free)
    for point in points:  # never above what is asked for, and within the same operators
        assert all(
            n <= most and (most - n) % (step or 1) == 0 for n, most, step in zip(point, high, steps, strict=True)
        )


@pytest.mark.pure
def test_too_few_sizes_below_leave_nothing_to_choose() -> None:
    assert choose_points([(1, 1, 1)], (1, 1, 1)) is None


# Graphs of other sizes

MODELS = ("svd", "animatediff", "wan2.1-1.3b", "ltx-video", "mochi", "ltx-vae", "sd-vae")
models = pytest.mark.parametrize("name", ["block", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS)])


@models
def test_a_graph_of_another_size_is_that_of_a_capture_there(name: str) -> None:
    model, learned = learned_model(name)
    for point in ((5, 24, 48), (7, 40, 16)):
        planner = model.planned(point)
        sized = learned.sized(point)
        assert sized is not None
        assert sized.facts.tensors == planner.graph.facts.tensors
        assert sized.facts.storages == planner.graph.facts.storages
        assert np.array_equal(sized.line.live_bytes, planner.graph.line.live_bytes)
        assert learned.weights.at(point) == planner.weights_bytes
        carried = learned.planner_at(point, sized)
        assert carried.unsliced_bytes == planner.unsliced_bytes
        floor, bound = planner.floor()[0], carried.floor()[0]
        assert floor <= bound <= 1.25 * floor  # a plan, so no lower than the lowest; and not far above it
        for budget in (bound, (bound + planner.unsliced_bytes) // 2):
            plan = carried.plan(budget)
            best = planner.plan(plan.predicted_peak_bytes)  # where known regions fit, the planner's do
            assert best.seconds <= plan.seconds * (1 + 1e-9)


@models
def test_the_peak_as_a_formula_is_right_to_the_byte(name: str) -> None:
    model, learned = learned_model(name)
    between = list(lattice(((3, 8, 16), (9, 40, 72)), (2, 8, 8), count=3))
    found = closed_peak(learned, between, (1, 8, 8))
    assert set(between) <= set(found.checked)
    for point in ((5, 24, 48), (9, 16, 72)):
        assert evaluate(found.expression, point) == model.planned(point).unsliced_bytes
    assert found.expression.free_symbols == {F, H, W}


def test_on_the_cpu_kernels_change_with_size_and_plans_follow() -> None:
    model, learned = learned_model("block", "cpu")
    point = (5, 24, 48)
    sized = learned.sized(point)
    assert sized is not None
    assert np.array_equal(sized.line.live_bytes, model.planned(point).graph.line.live_bytes)


@pytest.mark.slow
def test_a_model_that_unrolls_its_frames_has_a_form_for_each_number_of_them() -> None:
    model = sized_model("cogvideox-vae")
    with pytest.raises(DifferentGraph, match="depends on the sizes"):
        model.learn(((5, 6, 8), (3, 4, 6), (5, 6, 4), (5, 4, 8)))
    sizes = [(h, w) for h in (4, 6) for w in (4, 8)]
    why = model.cover([(frames, *size) for frames in (2, 3) for size in sizes], (1, 2, 2))
    assert len(why) == 1
    assert [sorted({p[0] for p in learned.template.points}) for learned in model.learned] == [[2], [3]]
    for frames in (2, 3):
        found = model.sized((frames, 6, 4))
        assert found is not None
        assert np.array_equal(found[1].line.live_bytes, model.planned((frames, 6, 4)).graph.line.live_bytes)
    assert model.sized((4, 6, 4)) is None


@pytest.mark.slow
def test_odd_latents_of_a_unet_are_left_to_the_planner() -> None:
    model, _ = learned_model("svd")
    assert model.sized((5, 20, 48)) is not None  # two levels: every multiple of 4
    assert model.sized((5, 21, 48)) is None


def test_a_plan_of_known_regions_is_refused_below_its_floor() -> None:
    _, learned = learned_model("block")
    sized = learned.sized((5, 24, 48))
    assert sized is not None
    with pytest.raises(OverBudget):
        learned.planner_at((5, 24, 48), sized).plan(2**16)
