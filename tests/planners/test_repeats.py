"""Repeated blocks: found once, and found the same as if each had been searched anew."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from sicompiler.api import prepare
from sicompiler.capture import capture
from sicompiler.compiler.analyzed_graph import AnalyzedGraph, analyze_graph
from sicompiler.compiler.search import make_search
from sicompiler.device import device_kind
from sicompiler.planners import candidates as searching
from sicompiler.planners.repeats import Repeats
from tests.zoo import tiny

Row = tuple[Any, ...]


class Blocks(nn.Module):
    """One feed-forward block after another, with a scale that all of them read."""

    def __init__(self, count: int, odd: int = -1) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(8, 16 if index != odd else 24) for index in range(count))
        self.downs = nn.ModuleList(nn.Linear(16 if index != odd else 24, 8) for index in range(count))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + torch.tanh(down(torch.relu(up(x)))) * scale
        return x


def repeats_of(model: nn.Module) -> tuple[Repeats[str], list[int]]:
    """What is known of nothing yet, and where the blocks of a model start."""
    graph = analyze_graph(capture(model.eval(), (torch.zeros(5, 8), torch.zeros(8)), {}), "cpu")
    starts = [p for p, n in enumerate(graph.facts.nodes) if n.name.startswith("relu")]
    return Repeats(graph.view, set()), starts


def test_what_is_known_of_a_block_is_known_of_the_next() -> None:
    repeats, starts = repeats_of(Blocks(4))
    repeats.keep(starts[1], "rows", 5, "found")
    assert repeats.find(starts[2], "rows") == "found"
    assert repeats.find(starts[2], "columns") is None
    assert repeats.find(starts[2] + 1, "rows") is None


def test_a_block_of_another_width_is_another_block() -> None:
    repeats, starts = repeats_of(Blocks(4, odd=2))
    repeats.keep(starts[1], "rows", 5, "found")
    assert repeats.find(starts[2], "rows") is None
    assert repeats.find(starts[3], "rows") == "found"


def test_only_as_much_as_the_answer_depends_on_has_to_be_equal() -> None:
    repeats, starts = repeats_of(Blocks(3, odd=2))
    repeats.keep(starts[0], "short", 3, "found")
    repeats.keep(starts[0], "long", 6, "found")
    assert repeats.find(starts[1], "short") == "found"
    assert repeats.find(starts[1], "long") is None, "the next block is another one"


class Reader(nn.Module):
    """Two pairs of equal operators on values from before; in one pair both read the same value."""

    def __init__(self, *, same: bool, dies: bool) -> None:
        super().__init__()
        self.same, self.dies = same, dies

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b, c, d = (x.sin(), x.cos(), x.exp(), x.sqrt())
        first = a.relu() + b
        second = c.relu() + (c if self.same else d)
        return (first * scale, second * scale, *(() if self.dies else (d,)))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        pytest.param({"same": False, "dies": True}, "found", id="equal"),
        pytest.param({"same": True, "dies": True}, None, id="one value in place of two"),
        pytest.param({"same": False, "dies": False}, None, id="one lives on"),
    ],
)
def test_values_from_before_are_told_apart(options: dict[str, bool], found: str | None) -> None:
    repeats, starts = repeats_of(Reader(**options))
    repeats.keep(starts[0], "rows", 2, "found")
    assert repeats.find(starts[1], "rows") == found


def rows(planner: Any) -> list[list[Row]]:
    return [
        [
            (c.start, c.stop, c.seed, c.lengths, c.peak_bytes.tolist(), c.seconds.tolist())
            for c in search.problem.candidates
        ]
        for search in planner.searches
    ]


@pytest.mark.parametrize("name", ["cogvideox-2b", *(pytest.param(n, marks=pytest.mark.slow) for n in ("svd", "mochi"))])
def test_candidates_are_those_of_a_search_without_repeats(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, args, kwargs = tiny(name)
    grown: list[int] = []
    grow = searching._Search._grow

    def counted(self: Any, *args: Any) -> Any:
        grown.append(1)
        return grow(self, *args)

    monkeypatch.setattr(searching._Search, "_grow", counted)
    ours = rows(prepare(module, args, kwargs)[1])
    with_repeats = len(grown)
    grown.clear()
    monkeypatch.setattr(Repeats, "find", lambda *_: None)
    assert rows(prepare(module, args, kwargs)[1]) == ours
    assert with_repeats < len(grown), "a block that repeats is searched once"


class Stages(nn.Module):
    """Convolutions and layers of tokens one after the other; shows what some of them give beside its result."""

    def __init__(self, shown: int) -> None:
        super().__init__()
        self.shown = shown
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = []
        for conv, layer in zip(self.convs, self.layers, strict=True):
            x = x + torch.relu(layer(conv(x))) * 2.0
            found.append(x)
        return (x.mean(dim=1), *found[len(found) - self.shown :])


def candidates_of(graph: AnalyzedGraph, known: searching.Regions | None) -> list[Row]:
    found = make_search(graph, None, [], device_kind("cpu").machine, None, known=known).problem.candidates
    return [(c.start, c.stop, c.seed, c.lengths, c.peak_bytes.tolist(), c.seconds.tolist()) for c in found]


def test_a_graph_is_searched_with_what_others_have_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the parts of a denoiser: one graph, more or less of which is shown, planned one after the other."""
    graphs = [
        analyze_graph(capture(Stages(shown).eval(), (torch.zeros(2, 4, 16, 16),), {}), "cpu") for shown in (2, 1, 0)
    ]
    grown: list[int] = []
    grow = searching._Search._grow

    def counted(self: Any, *args: Any) -> Any:
        grown.append(1)
        return grow(self, *args)

    monkeypatch.setattr(searching._Search, "_grow", counted)
    alone = [candidates_of(graph, None) for graph in graphs]
    apart, known = len(grown), searching.Regions()
    grown.clear()
    assert [candidates_of(graph, known) for graph in graphs] == alone
    assert len(grown) < 0.9 * apart
    known.forget()
    assert candidates_of(graphs[0], known) == alone[0]


def test_searches_for_several_budgets_share_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted for operators above one budget is told for another one; what was not is counted then."""
    graph = analyze_graph(capture(Stages(0).eval(), (torch.zeros(2, 4, 16, 16),), {}), "cpu")
    peak, grown = graph.line.peak_bytes, list[int]()
    grow = searching._Search._grow

    def counted(self: Any, *args: Any) -> Any:
        grown.append(1)
        return grow(self, *args)

    def found(share: float, known: searching.Regions | None) -> list[Row]:
        search = make_search(graph, None, [], device_kind("cpu").machine, None, known=known)
        problem = search.sought_above(int(share * peak)).problem
        return [(c.start, c.stop, c.seed, c.peak_bytes.tolist(), c.seconds.tolist()) for c in problem.candidates]

    monkeypatch.setattr(searching._Search, "_grow", counted)
    shares = (0.5, 0.9, 0.7, 0.95)
    alone = [found(share, None) for share in shares]
    apart, known = len(grown), searching.Regions()
    assert len(alone[0]) > len(alone[1]) > 0
    grown.clear()
    assert [found(share, known) for share in shares] == alone
    assert len(grown) < 0.85 * apart
    search = make_search(graph, None, [], device_kind("cpu").machine, None)
    assert search.sought_above(peak - 1) is search.sought_above(peak - 2), "the same operators are above both"


def test_answers_of_another_machine_are_no_answers() -> None:
    graph = analyze_graph(capture(Stages(0).eval(), (torch.zeros(2, 4, 16, 16),), {}), "cpu")
    slow = dataclasses.replace(device_kind("cpu").machine, memory_bandwidth=1e6)
    known = searching.Regions()
    alone: list[list[Row]] = []
    found: list[list[Row]] = []
    for machine in (device_kind("cpu").machine, slow):
        for rows, shared in ((alone, None), (found, known)):
            problem = make_search(graph, None, [], machine, None, known=shared).problem
            rows.append([candidate.seconds.tolist() for candidate in problem.candidates])
    assert found == alone
    assert alone[0] != alone[1]
