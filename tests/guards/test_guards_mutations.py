"""Random sequences of what people do to a live model between calls: never a silent difference to the untouched twin."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import sicompiler
from sicompiler.capture import capture
from sicompiler.compiled_module import CompiledModule
from sicompiler.guards import keep_state
from sicompiler.runtime.call import Call
from sicompiler.runtime.compiled import Executable
from tests.guard_mutations import MUTATIONS, WIDTH, Mutation, toy

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
SEQUENCES = int(os.environ.get("GUARD_SEQUENCES", "10000" if DEEP else "300"))
DEALT = 51  # of three each: every mutation comes three times
INPUTS = [torch.linspace(-1, 1, 2 * WIDTH, dtype=torch.float64).reshape(2, WIDTH) * scale for scale in (1.0, -2.0)]
NUMBERS = (0.5, 2.0, -1.5)


class Pair:
    """A compiled model and its untouched twin, to which the same is done; both can be set back."""

    def __init__(self) -> None:
        self.ours, self.theirs = toy(), toy()
        sicompiler.compile_for_budget(self.ours, "64MiB", example_inputs=((INPUTS[0],), {}))
        self.state: CompiledModule = self.ours.forward.__self__  # type: ignore[attr-defined]
        self._base = [self.theirs(x) for x in INPUTS]
        self._undo = [keep_state(model, "forward") for model in (self.ours, self.theirs)]

    @contextlib.contextmanager
    def played(self) -> Iterator[Callable[[Mutation, float], None]]:
        """A context that sets both models back in the end; gives what acts on both."""
        outside: list[Callable[[], None]] = []

        def act(mutation: Mutation, number: float) -> None:
            for model in (self.ours, self.theirs):
                undo = mutation.apply(model, number)
                if undo is not None:
                    outside.append(undo)

        try:
            yield act
        finally:
            for undo in reversed(outside):
                undo()
            for kept in self._undo:
                kept.back()
            for model in (self.ours, self.theirs):
                model.eval()
            assert all(torch.equal(self.theirs(x), y) for x, y in zip(INPUTS, self._base, strict=True)), "set back"

    def compare(self) -> str:
        """Call both; gives the reason where ours refuses."""
        for x in INPUTS:
            try:
                ours = self.ours(x)
            except sicompiler.CaptureError as error:
                return str(error)
            assert relative(ours, self.theirs(x)) <= 1e-12
        return ""


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the largest entry."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Captured as always, but run as captured: what plans do to a graph is tried elsewhere."""

    def captured(self: CompiledModule, call: Call) -> Executable:
        with self.untouched():
            return Executable(capture(self.model, call.args, call.kwargs), plan)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        made = Pair()
        plan = next(iter(made.state.compiled.values())).plan
        patch.setattr(CompiledModule, "compile", captured)
        yield made


STEPS = st.lists(
    st.tuples(st.sampled_from(sorted(MUTATIONS)), st.sampled_from(NUMBERS)), min_size=1, max_size=6 if DEEP else 3
)


Steps = list[tuple[str, float]]


def check(pair: Pair, steps: Steps) -> None:
    """Do to both models what is said, compare them after each step, and set them back."""
    with pair.played() as act:
        reasons: list[str] = []
        for name, number in steps:
            act(MUTATIONS[name], number)
            reasons += [MUTATIONS[name].keeps_state]
            refused = pair.compare()
            if refused:
                assert any(reason and reason in refused for reason in reasons), refused
                break
    if len(pair.state.compiled) > 500:
        pair.state.compiled.clear()


def dealt() -> Iterator[Steps]:
    """Sequences of three from a shuffled deck, in which each mutation is as often as any other."""
    chance, deck = random.Random(0), list[str]()
    for _ in range(DEALT):
        steps = Steps()
        for _ in range(3):
            deck = deck or chance.sample(sorted(MUTATIONS), len(MUTATIONS))
            steps.append((deck.pop(), chance.choice(NUMBERS)))
        yield steps


def test_no_dealt_sequence_of_mutations_makes_a_silent_difference(pair: Pair) -> None:
    sequences = list(dealt())
    assert {name for steps in sequences for name, _ in steps} == MUTATIONS.keys()
    for steps in sequences:
        try:
            check(pair, steps)
        except AssertionError as error:
            raise AssertionError(f"after {steps}") from error


@pytest.mark.slow
@hypothesis.settings(max_examples=SEQUENCES, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(steps=STEPS)
def test_no_sequence_of_mutations_makes_a_silent_difference(pair: Pair, steps: Steps) -> None:
    """10,000 under the profile `deep`; what fails is shrunk to a few steps."""
    check(pair, steps)


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mutation_matters(pair: Pair, name: str) -> None:
    """Alone it changes what the twin computes, or is refused; so a sequence that passes has seen something."""
    with pair.played() as act:
        before = [pair.theirs(x) for x in INPUTS]
        act(MUTATIONS[name], 3.0)
        refused = pair.compare()
        assert bool(refused) == bool(MUTATIONS[name].keeps_state), refused
        after = [pair.theirs(x) for x in INPUTS]
        silent = {"a forward of the instance taken away", "hooks taken off", "weights of other strides"}
        changed = any(relative(a, b) > 1e-6 for a, b in zip(after, before, strict=True))
        assert changed or refused or name in silent
    assert pair.compare() == ""
