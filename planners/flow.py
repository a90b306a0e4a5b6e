"""Maximum flow, and what lies before the earliest of all minimum cuts: Dinic's algorithm on lists of whole numbers."""

from __future__ import annotations

from collections import deque


class Network:
    """Directed edges between numbered vertices.

    Args:
        vertices: how many; they have the numbers below.
    """

    def __init__(self, vertices: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(vertices)]  # of each vertex
        self._heads: list[int] = []
        self._room: list[int] = []  # what may still flow; the edge of number `e ^ 1` runs the other way
        self._endless: list[int] = []
        self._finite = 0

    def edge(self, tail: int, head: int, capacity: int | None = None) -> None:
        """Add an edge; without a capacity there is no limit to what flows."""
        number = len(self._heads)
        self._edges[tail].append(number)
        self._edges[head].append(number + 1)
        self._heads += (head, tail)
        self._room += (capacity or 0, 0)
        if capacity is None:
            self._endless.append(number)
        else:
            self._finite += capacity

    def before_the_cut(self, source: int, target: int) -> set[int] | None:
        """Vertices to which more could flow from the source, once all that can flow to the target does.

        They are the same for every maximum flow. None where there is no end to what can flow.
        """
        endless = self._finite + 1  # more than any cut that is not endless
        for number in self._endless:
            self._room[number] = endless
        flow = 0
        while (levels := self._levels(source))[target] >= 0:
            flow += self._augmented(source, target, levels)
            if flow >= endless:
                return None
        return {vertex for vertex, level in enumerate(levels) if level >= 0}

    def _levels(self, source: int) -> list[int]:
        """Edges from the source to each vertex through which more may flow; negative where there is no way."""
        levels, heads, room = [-1] * len(self._edges), self._heads, self._room
        levels[source] = 0
        waiting = deque([source])
        while waiting:
            vertex = waiting.popleft()
            for number in self._edges[vertex]:
                head = heads[number]
                if room[number] and levels[head] < 0:
                    levels[head] = levels[vertex] + 1
                    waiting.append(head)
        return levels

    def _augmented(self, source: int, target: int, levels: list[int]) -> int:
        """Let flow what can on shortest ways; gives how much."""
        heads, room = self._heads, self._room
        left = [iter(edges) for edges in self._edges]  # edges that were not found to lead nowhere
        flow, way = 0, list[int]()
        vertex = source
        while True:
            if vertex == target:
                least = min(room[number] for number in way)
                for number in way:
                    room[number] -= least
                    room[number ^ 1] += least
                flow += least
                full = next(i for i, number in enumerate(way) if not room[number])
                vertex = heads[way[full] ^ 1]
                del way[full:]
                continue
            for number in left[vertex]:
                if room[number] and levels[heads[number]] == levels[vertex] + 1:
                    way.append(number)
                    vertex = heads[number]
                    break
            else:
                if not way:
                    return flow
                vertex = heads[way.pop() ^ 1]
