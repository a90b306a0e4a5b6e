"""Calibrating makes few clips: full runs once, plans on one call first, runs that have shown enough are ended."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch

import sicompiler
from sicompiler import Rehash
from sicompiler.compiler.search import Progress
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.pipeline import CompiledPipeline, pipeline_state
from sicompiler.pipelines.rehash import learning
from sicompiler.pipelines.rehash.calibrate import learn
from sicompiler.pipelines.rehash.mode import Mode
from sicompiler.pipelines.rehash.references import References
from sicompiler.pipelines.rehash.runs import ending_after, run_call
from sicompiler.pipelines.rehash.script import Script
from sicompiler.planners import min_cut
from sicompiler.planners.min_cut import FeatureCut
from sicompiler.rehash.recorder import LoopRecorder, ProbeTurn
from tests.mini_pipeline import MiniPipeline, mini
from tests.mini_rehash import CALL, ROOMY, STEPS, call_list, rehashed

pytestmark = pytest.mark.usefixtures("fast_skips", "cached")


def _learning(**wanted: Any) -> CompiledPipeline:
    pipe = sicompiler.compile_for_budget(mini(), ROOMY, rehash=Rehash(speedup=1.5, **wanted))
    state = pipeline_state(pipe, "learn")
    vars(state)["alive"] = pipe  # a state keeps no pipeline
    return state


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Progress]:
    """By what a calibration says it is doing, the calls of the pipeline that it makes; and whom it tells that."""
    found: Counter[str] = Counter()
    doing, call = ["compiling"], MiniPipeline.__call__

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("Step Rehash: "):
            doing[0] = what.removeprefix("Step Rehash: ")

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found[doing[0]] += 1
        return call(self, *args, **kwargs)

    monkeypatch.setattr(MiniPipeline, "__call__", counted)
    return found, progress


def test_six_calls_are_calibrated_with_few_clips(counting: tuple[Counter[str], Progress]) -> None:
    made, progress = counting
    request = Rehash(speedup=1.4, calls=call_list(6), held_out=2, accept_worse=True)
    sicompiler.compile_for_budget(mini(), ROOMY, rehash=request, progress=progress)
    assert made["learning"] == 4
    assert made["measuring how errors grow"] == 6
    assert made["runs in full"] == 2, "those that were learned from are not made again"
    assert made["trying plans on one call"] <= 2 * 4, "and beside each a few steps in full"
    assert sum(made.values()) <= 40


def test_a_run_begins_with_what_the_full_run_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    state, evaluated = _learning(), list[int]()
    assert state.rehash is not None
    (call,) = call_list(1)
    state.rehash.script = script = Script()
    full = References(state, [call]).make(0, Mode.LEARNING)
    run_whole = CompiledComponent.run_whole

    def seen(self: CompiledComponent, *args: Any) -> Any:
        if self.role.component == "unet":
            evaluated.append(1)
        return run_whole(self, *args)

    monkeypatch.setattr(CompiledComponent, "run_whole", seen)
    script.until = 5
    with state.rehash.running(Mode.EXACT):
        again = run_call(state, call)
        assert len(evaluated) == STEPS - 5
        assert torch.allclose(again.final, full.final, rtol=1e-12, atol=1e-12)
        evaluated.clear()
        run_call(state, call_list(2)[1])
        assert len(evaluated) == STEPS, "another call is given other inputs"


def test_a_run_that_is_too_far_from_the_full_one_is_ended() -> None:
    state = _learning()
    assert state.rehash is not None
    first, second = call_list(2)
    references = References(state, [first])
    full = references.of(0)
    assert references.of(0) is full, "it is made once"
    with state.rehash.running(Mode.EXACT):
        assert run_call(state, first, references.ending_beyond(0, 1e-9)).frames
        ended = run_call(state, second, references.ending_beyond(0, 1e-9))
        assert (ended.frames, ended.steps) == ([], 1)
        assert run_call(state, second, references.ending_beyond(0, 1e9)).frames
        assert run_call(state, first, ending_after(3)).steps == 3
        assert torch.equal(run_call(state, first).final, full.final), "the next run knows nothing of it"


def test_runs_that_are_learned_from_take_turns_at_probing() -> None:
    cuts = {FeatureCut((n,), 8, 0.1, 0.1): (f"node{n}",) for n in range(4)}
    for runs in (1, 2, 4, 9):
        probed = {
            (number, step)
            for first in range(runs)
            for number in range(4)
            for step in range(1, 8)
            if LoopRecorder(cuts, ProbeTurn(first, runs)).probes(number, step)
        }
        assert len(probed) == 4 * 7, "together they probe every cut at every evaluation"
        assert len([n for n in range(4) if LoopRecorder(cuts, ProbeTurn(0, runs)).probes(n, 3)]) == 4 // min(runs, 4)


def test_cuts_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    search = min_cut.candidate_cuts

    def counted(*args: Any) -> Any:
        looked.append(1)
        return search(*args)

    monkeypatch.setattr(learning, "candidate_cuts", counted)
    state = _learning()
    learn(state, call_list(3))
    assert len(looked) == 1


def test_features_that_take_too_much_room_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _learning()
    assert state.rehash is not None
    learn(state, call_list(1))
    (rows,) = state.rehash.lessons.values()
    monkeypatch.setattr("sicompiler.pipelines.rehash.learning.MOST_HELD", 0.0)
    narrow = _learning()
    assert narrow.rehash is not None
    learn(narrow, call_list(1))
    (left,) = narrow.rehash.lessons.values()
    assert len(left) == 1 < len(rows)
    assert left[0].nbytes == min(row.nbytes for row in rows)


def test_why_nothing_is_skipped_is_said_once_for_equal_calls(caplog: pytest.LogCaptureFixture) -> None:
    pipe = rehashed(rel_error=0.9, calls=call_list(2))
    with caplog.at_level(logging.WARNING, "sicompiler"):
        for steps in (STEPS, STEPS, 4, 4, 4, STEPS, 4):
            pipe(**{**CALL, "steps": steps})
    told = [m for m in caplog.messages if m.startswith("Step Rehash skips nothing")]
    assert len(told) == 2, "again after a call that skips"
    assert "but this is one of 4" in told[0]
