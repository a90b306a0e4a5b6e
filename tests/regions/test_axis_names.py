"""Axes are named by what they are, from the inputs of a model and from what its operators do with them."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from sicompiler.axes.factor_map import Slicing
from sicompiler.axes.meanings import CHANNELS, FRAMES, HEADS, joined, piece
from sicompiler.axes.names import Axis, AxisNames, Meanings
from sicompiler.capture import capture
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from tests.zoo import captured


class Video(nn.Module):
    """A block as video models have it: convolutions of frames, attention within them, both along time."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(8, 32, 3, padding=1)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.time = nn.Conv3d(32, 32, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        batch, frames, _, height, width = sample.shape
        x = self.image(sample.flatten(0, 1))
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(2, (4, 8)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        back = self.out(mixed).transpose(1, 2).reshape(batch, frames, 32, height, width)
        found: torch.Tensor = self.time(back.transpose(1, 2))
        return found


def names_of(model: nn.Module, *args: torch.Tensor) -> tuple[AnalyzedGraph, AxisNames]:
    graph = analyze_graph(capture(model.eval(), args, {}), "cpu")
    return graph, graph.axes


def shape_of(graph: AnalyzedGraph, names: AxisNames, name: str) -> list[str]:
    p = next(p for p, node in enumerate(graph.facts.nodes) if node.name == name)
    shape = graph.facts.tensors[p][0].shape
    return [names.of(p, Slicing(d, 1, size, 1)) if size > 1 else "1" for d, size in enumerate(shape)]


def test_axes_are_named_where_they_flow() -> None:
    graph, names = names_of(Video(), torch.randn(2, 5, 8, 6, 7))
    assert shape_of(graph, names, "sample") == ["batch", "frames", "channels", "height", "width"]
    assert shape_of(graph, names, "conv2d") == ["batch x frames", "channels", "height", "width"]
    assert shape_of(graph, names, "scaled_dot_product_attention") == ["batch x frames", "heads", "tokens", "channels"]
    assert shape_of(graph, names, "linear_1") == ["batch x frames", "tokens", "channels"]
    assert shape_of(graph, names, "conv3d") == ["batch", "channels", "frames", "height", "width"]


def test_a_part_of_a_merged_dim_is_named_alone() -> None:
    graph, names = names_of(Video(), torch.randn(2, 5, 8, 6, 7))
    p = next(p for p, node in enumerate(graph.facts.nodes) if node.name == "linear_1")
    assert names.of(p, Slicing(0, 2, 5, 1)) == "frames"
    assert names.of(p, Slicing(0, 1, 2, 5)) == "batch"
    assert names.of(p, Slicing(1, 1, 6, 7)) == "height"
    assert names.of(p, Slicing(1, 1, 3, 14)) == "height"  # two rows a unit


def test_what_nothing_tells_of_has_a_neutral_name() -> None:
    class Sums(nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return (points * 2).exp()

    graph, names = names_of(Sums(), torch.randn(2, 3, 4, 5))
    assert shape_of(graph, names, "exp") == ["batch", *(f"axis {d} of points" for d in (1, 2, 3))]


@pytest.mark.pure
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["frames", "height", "width"], "tokens"),
        (["batch", "height", "width"], "batch x tokens"),
        (["height", "channels"], "height"),
        (["channels", "height"], "channels"),
        (["heads", "channels"], "channels"),
        (["text", "tokens"], "tokens"),
        (["batch"], "batch"),
        ([], ""),
    ],
)
def test_merged_axes(words: list[str], name: str) -> None:
    assert joined(words) == name


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        ("wan2.1-1.3b", "hidden_states", ["batch", "channels", "frames", "height", "width"]),
        ("ltx-video", "hidden_states", ["batch", "tokens", "channels"]),
        ("ltx-video", "encoder_hidden_states", ["batch", "text", "channels"]),
        ("cogvideox-2b", "hidden_states", ["batch", "frames", "channels", "height", "width"]),
        ("svd", "sample", ["batch", "frames", "channels", "height", "width"]),
        ("svd", "added_time_ids", ["batch", "channels"]),
    ],
)
def test_inputs_of_families(model: str, value: str, expected: list[str]) -> None:
    graph = analyze_graph(captured(model)[1], "cpu")
    found = shape_of(graph, graph.axes, value)
    assert found == [word if name != "1" else "1" for name, word in zip(found, expected, strict=True)]


def _plainly(axis: Axis, asking: frozenset[Axis]) -> str:
    """What an axis is, looked for anew wherever it is a part of another."""
    if axis in asking:
        return axis.usual
    if axis.votes:
        return max(axis.votes, key=lambda word: axis.votes[word])
    asking |= {axis}
    for pieces in axis.pieces.values():
        if any(each.root.votes for each in pieces):
            word = joined(filter(None, (_plainly(each.root, asking) for each in pieces)))
            return CHANNELS if word == HEADS else word
    found = joined(filter(None, (_plainly(each.root, asking) for each in axis.parts)))
    if found or axis.usual:
        return found or axis.usual
    if axis.beside is not None and axis.beside.root not in asking:
        return {CHANNELS: FRAMES, FRAMES: CHANNELS}.get(_plainly(axis.beside.root, asking), "")
    if axis.whole is not None:
        whole, index, sizes = axis.whole
        word = _plainly(whole.root, asking)
        return piece(word, index, sizes) if word else ""
    return ""


@pytest.mark.pure
@pytest.mark.parametrize("seed", range(40))
def test_what_an_axis_is_does_not_depend_on_what_was_asked_before(seed: int) -> None:
    draw = random.Random(seed)
    axes = [Axis(str(i), i, usual=draw.choice(["", "", "frames", "text"])) for i in range(12)]
    for axis in axes:
        if draw.random() < 0.3:
            axis.votes[draw.choice([HEADS, CHANNELS, FRAMES, "width"])] += 1
        if draw.random() < 0.4:
            axis.parts = tuple(draw.choices(axes, k=2))
        if draw.random() < 0.3:
            axis.beside = draw.choice(axes)
        if draw.random() < 0.4:
            axis.whole = draw.choice(axes), draw.randrange(3), (2, 3, 4)
        if draw.random() < 0.3:
            axis.pieces[2, 3] = tuple(draw.choices(axes, k=2))
    meanings = Meanings()
    for axis in draw.choices(axes, k=30):
        assert meanings.of(axis) == _plainly(axis, frozenset())


@pytest.mark.pure
def test_axes_merged_of_merged_ones_are_named_at_once() -> None:
    axis = Axis("first", 0, usual="frames")
    for depth in range(60):
        axis = Axis(str(depth), depth, parts=(axis, axis))
    assert Meanings().of(axis) == "frames"
