"""Repeated blocks: what was found for regions from one start is true wherever the graph goes on in the same way.

A transformer is one block many times over, a UNet has a few of each level. What grows from a start depends on the
operators from there to where the region ends, on the tensors they read and make, and on which of those die on the way,
not on where in the schedule that is. So every operator gets a token that says all of this, and a start whose next
tokens are those of an earlier one takes over what was found there. Tokens are told apart by value, never by a hash
alone: equal means equal. So what one graph has answered answers another one too, such as the parts of a denoiser that
differ in what is kept of them.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import fx

from sicompiler.facts.storages import Origin
from sicompiler.regions.view import GraphView

T = TypeVar("T")


@dataclass(frozen=True)
class Answers(Generic[T]):
    """Answers by what they are about, for one graph or for several that have most of their operators in common.

    Attributes:
        tokens: equal tokens have the same number.
        runs: and so have equal runs of them.
        answers: by question and run.
        counts: by question, after how many operators something is known.
        numbers: the next one, given out once each: several threads may search.
    """

    tokens: dict[Hashable, int] = field(default_factory=dict)
    runs: dict[tuple[int, ...], int] = field(default_factory=dict)
    answers: dict[tuple[Hashable, int], T] = field(default_factory=dict)
    counts: dict[Hashable, list[int]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def forget(self) -> None:
        """Let go of everything; what is still searched finds nothing, as numbers are never given out again."""
        for known in (self.tokens, self.runs, self.answers, self.counts):
            known.clear()


class Repeats(Generic[T]):
    """What is known of starts, by what follows them.

    Args:
        view: the graph.
        ends, deep: positions at which a region may end, without and with halos; they count as part of what follows.
        hot: for each node, whether it makes enough to be sliced for; counts as part of what follows, too.
        known: what is known, perhaps of other graphs.
    """

    def __init__(
        self,
        view: GraphView,
        ends: Set[int],
        deep: Set[int] = frozenset(),
        hot: Sequence[bool] | None = None,
        known: Answers[T] | None = None,
    ) -> None:
        self.view, self._known = view, known or Answers()
        self._places = [self._touched(p) for p in range(len(view.facts.nodes))]
        self._earliest = [min(places, default=len(self._places)) for places in self._places]
        self._tokens = [
            self._token(p, (p in ends, p in deep, hot is not None and hot[p])) for p in range(len(view.facts.nodes))
        ]
        self._inside = [self._number((t, *(p - q for q in self._places[p]))) for p, t in enumerate(self._tokens)]
        self._start = -1
        self._runs: list[int] = []  # of the start last asked for: the number of its first token, first two, ...
        self._names: dict[int, int] = {}  # of what lies before that start, in order of appearance
        self._fresh = 0  # runs from here on were first seen for that start

    def find(self, start: int, key: Hashable) -> T | None:
        """What is known of an earlier start that asked the same and goes on in the same way.

        Args:
            start: position of the first operator.
            key: what else the answer depends on.
        """
        self._begin(start)
        for count in self._known.counts.get(key, ()):
            if start + count > len(self._tokens):
                break
            while len(self._runs) < count:
                if self._runs and self._runs[-1] >= self._fresh:
                    return None  # nothing earlier goes on in this way
                self._grow()
            found = self._known.answers.get((key, self._runs[count - 1]))
            if found is not None:
                return found
        return None

    def keep(self, start: int, key: Hashable, count: int, found: T) -> None:
        """Remember an answer.

        Args:
            start: position of the first operator.
            key: what else the answer depends on.
            count: how many operators from `start` on it depends on.
            found: the answer.
        """
        self._begin(start)
        while len(self._runs) < count:
            self._grow()
        self._known.answers[key, self._runs[count - 1]] = found
        counts = self._known.counts.setdefault(key, [])
        if count not in counts:
            insort(counts, count)

    def fresh_number(self) -> int:
        """A number that nothing else has: for questions of one graph alone."""
        return next(self._known.numbers)

    def _begin(self, start: int) -> None:
        if start != self._start:
            self._start, self._runs, self._names, self._fresh = start, [], {}, next(self._known.numbers)

    def _grow(self) -> None:
        """Take in the next token: what it touches is told by how far back it lies, or named if it lies before."""
        p, start = self._start + len(self._runs), self._start
        before = self._runs[-1] if self._runs else -1
        if self._earliest[p] >= start:
            run: tuple[int, ...] = (before, self._inside[p])
        else:
            names = self._names
            told = (p - q if q >= start else -1 - names.setdefault(q, len(names)) for q in self._places[p])
            run = (before, self._tokens[p], *told)
        self._runs.append(self._known.runs.setdefault(run, next(self._known.numbers)))

    def _number(self, token: Hashable) -> int:
        return self._known.tokens.setdefault(token, next(self._known.numbers))

    def _values(self, p: int) -> list[tuple[int, int]]:
        """What an operator reads, with the other results of what makes it, and what it makes."""
        facts = self.view.facts
        nodes = [*(q for q, _ in self.view.table.operands[p]), p]
        return [(q, r) for q in nodes for r in range(len(facts.tensors[q]))]

    def _touched(self, p: int) -> list[int]:
        """Places in the schedule that an operator refers to: the nodes of its values, the births of their storages.

        Weights and inputs are as many places before all others. A weight that only this operator reads is none, for
        nothing else can refer to it.
        """
        view, operands = self.view, self.view.table.operands[p]
        twice = len(operands) != len(set(operands))
        found = []
        for q, r in self._values(p):
            storage = view.facts.tensors[q][r].storage
            if view.facts.storages[storage].origin is Origin.VALUE:
                found += [q, view.born[storage]]
            elif twice or view.storage_readers[storage] != [p]:
                found += [-2 - 2 * q, -3 - 2 * storage]
        return found

    def _token(self, p: int, told: tuple[bool, ...]) -> int:
        """Everything else that a region, its peak and its time ask about an operator."""
        view, facts = self.view, self.view.facts
        node = facts.nodes[p]
        parts: list[Hashable] = [r for _, r in view.table.operands[p]]
        for q, r in self._values(p):
            tensor, storage = facts.tensors[q][r], facts.storages[facts.tensors[q][r].storage]
            parts += [tensor.shape, tensor.stride, tensor.dtype, storage.nbytes, storage.origin]
            parts += [view.lives.last[storage.index] == p, storage.index in view.offloaded]
        arguments = _frozen(fx.node.map_arg((node.args, node.kwargs), lambda _: "a tensor"))
        return self._number((node.target, arguments, told, view.clones_storage[p], *parts))


def _frozen(argument: Any) -> Hashable:
    if isinstance(argument, (list, tuple)):
        return tuple(_frozen(item) for item in argument)
    if isinstance(argument, dict):
        return tuple((key, _frozen(value)) for key, value in argument.items())
    found: Hashable = argument
    return found
