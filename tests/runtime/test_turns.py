"""Turns of live models, and traces: who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

import threading
import time

from torch import nn

from sicompiler.turns import Turn, executing, tracing, turn_of
from tests.threads import in_threads


def test_a_model_has_one_turn() -> None:
    model = nn.Linear(2, 2)
    assert turn_of(model) is turn_of(model)
    assert turn_of(model) is not turn_of(nn.Linear(2, 2))


def test_a_model_that_runs_is_not_idle_for_anybody() -> None:
    turn, idle = Turn(), list[bool]()

    def look(number: int) -> None:
        with turn.if_idle() as is_idle:
            idle.append(is_idle)

    look(0)
    with turn.taken():
        look(0)  # the thread that runs it
        in_threads(look, 1)
    look(0)
    assert idle == [True, False, False, True]


def test_two_threads_that_want_to_move_the_model_of_each_other_go_on() -> None:
    turns, had, both = (Turn(), Turn()), [], threading.Barrier(2, timeout=60)

    def run(number: int) -> None:
        for _ in range(20):
            both.wait()
            with turns[number].taken(), executing():
                time.sleep(0.002)
                with turns[number].waiting_for([turns[1 - number]]) as other:
                    had.append(other)

    in_threads(run)
    assert had == [0] * 40


def test_nothing_is_waited_for_in_the_middle_of_a_run_of_the_same_model() -> None:
    turn = Turn()
    with turn.taken(), turn.taken(), turn.waiting_for([Turn()]) as other:
        assert other is None


def test_a_trace_has_all_models_to_itself() -> None:
    """Traces happen inside of executions, as planning does, and those of other threads wait meanwhile."""
    running, wrong = [0, 0], []

    def run(number: int) -> None:
        for round_number in range(30):
            with executing():
                running[number] = 1
                time.sleep(0.0005)
                running[number] = 0
                if round_number % 3 == 0:
                    with tracing(), tracing(), executing():
                        wrong.extend([number] if running[1 - number] else [])
                        time.sleep(0.0005)
                        wrong.extend([number] if running[1 - number] else [])

    in_threads(run)
    assert wrong == []


def test_a_thread_that_waits_for_its_turn_holds_up_no_trace() -> None:
    turn, waiting = Turn(), threading.Event()

    def run(number: int) -> None:
        if number == 0:
            with turn.taken():
                waiting.wait(60)
                time.sleep(0.01)
                with tracing():
                    pass
        else:
            with executing():
                while turn._depth == 0:
                    time.sleep(0.001)
                waiting.set()
                with turn.taken():
                    pass

    in_threads(run)
