"""Maximum flow: what lies before the earliest minimum cut is what networkx finds, and what trying all cuts finds."""

from __future__ import annotations

import itertools
import random

import networkx as nx
import pytest

from sicompiler.planners.flow import Network

pytestmark = pytest.mark.pure

Edges = list[tuple[int, int, int | None]]


def drawn(seed: int, vertices: int, edges: int, endless: float) -> Edges:
    """Edges between a source 0 and a target 1, some without a capacity, none twice."""
    chance = random.Random(seed)
    pairs = [(a, b) for a, b in itertools.permutations(range(vertices), 2) if a != 1 and b != 0]
    return [
        (a, b, None if chance.random() < endless else chance.randint(0, 9))
        for a, b in chance.sample(pairs, min(edges, len(pairs)))
    ]


def before_the_cut(vertices: int, edges: Edges) -> set[int] | None:
    network = Network(vertices)
    for tail, head, capacity in edges:
        network.edge(tail, head, capacity)
    return network.before_the_cut(0, 1)


def by_networkx(vertices: int, edges: Edges) -> set[int] | None:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(vertices))
    for tail, head, capacity in edges:
        graph.add_edge(tail, head, **({} if capacity is None else {"capacity": capacity}))
    try:
        residual = nx.algorithms.flow.boykov_kolmogorov(graph, 0, 1)
    except nx.NetworkXUnbounded:
        return None
    more = nx.DiGraph((a, b) for a, b in residual.edges if residual[a][b]["flow"] < residual[a][b]["capacity"])
    return {0, *(nx.descendants(more, 0) if 0 in more else ())}


@pytest.mark.parametrize("endless", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("vertices", "edges"), [(5, 8), (12, 40), (40, 120)])
def test_it_is_what_networkx_finds(vertices: int, edges: int, endless: float) -> None:
    for seed in range(40):
        rows = drawn(seed, vertices, edges, endless)
        assert before_the_cut(vertices, rows) == by_networkx(vertices, rows), f"seed {seed}"


def test_no_cut_has_less_and_none_of_as_little_is_earlier() -> None:
    for seed in range(60):
        rows = drawn(seed, 6, 14, 0.0)
        found = before_the_cut(6, rows)
        assert found is not None
        sides = [{0, *some} for size in range(5) for some in itertools.combinations(range(2, 6), size)]
        through = {tuple(sorted(s)): sum(c or 0 for a, b, c in rows if a in s and b not in s) for s in sides}
        least = min(through.values())
        assert through[tuple(sorted(found))] == least, f"seed {seed}"
        assert all(found <= set(side) for side, capacity in through.items() if capacity == least), f"seed {seed}"


def test_where_there_is_no_way_nothing_flows() -> None:
    assert before_the_cut(4, [(0, 2, 3), (3, 1, None)]) == {0, 2}
    assert before_the_cut(2, []) == {0}
    assert before_the_cut(3, [(0, 2, None), (2, 1, None)]) is None
