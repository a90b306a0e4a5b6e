"""Learning from a loop that runs in full: the features of a few cuts are watched, and each is probed at every step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from sicompiler.capture import Program
from sicompiler.compiler.analyzed_graph import analyze_graph
from sicompiler.compiler.search import whole_seconds_of
from sicompiler.errors import BadInput, OverBudget
from sicompiler.machines import machine_of
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.rehash.parts import distance, held_bytes, watching
from sicompiler.planners.min_cut import FeatureCut, candidate_cuts
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.lessons import CutStats
from sicompiler.rehash.loop import DenoisingLoop
from sicompiler.runtime.call import Call
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")

CUTS = 4  # that one run watches: each is probed at every step
MOST_LEFT = 0.35  # share of the time a skipped evaluation may cost
MOST_HELD = 0.25  # share of the room that features may take: beside larger ones, the rest runs in small slices


def cuts_of(component: CompiledComponent, program: Program) -> dict[FeatureCut, tuple[str, ...]]:
    """The cuts whose features are watched while learning, with the names of their nodes.

    Args:
        component: the denoiser.
        program: of it, clean.

    Raises:
        BadInput: there is no legal cut.
    """
    device_type = component.home.type
    graph = analyze_graph(program, device_type)
    seconds = whole_seconds_of(graph, machine_of(device_type))
    found = candidate_cuts(graph.facts, seconds, MOST_LEFT)
    if not found:
        raise BadInput(
            f"{component.role.label} has no cut at which it can be entered again with at most {MOST_LEFT:.0%} of "
            "its time left: Step Rehash can't skip any of it"
        )
    names = [node.name for node in program.graph_module.graph.nodes]
    return {cut: tuple(names[p] for p in cut.positions) for cut in found[:CUTS]}


def record(
    component: CompiledComponent,
    loop: DenoisingLoop,
    call: Call,
    now: Callable[[torch.device], float],
    *,
    same: bool,
) -> Any:
    """Run the denoiser in full and write down what it shows: its features, and what errors of them do to the output.

    A call with another graph than the first one, or one that leaves no room to watch, runs without being watched.

    Args:
        component: the denoiser.
        loop: that is learned from.
        call: of the denoiser, with its key.
        now: the time, once the device has done what it was asked for.
        same: whether the call has the graph of the first one.

    Returns:
        The output.

    Raises:
        OverBudget: there is no room to watch even one cut at the first call.
    """
    branch = loop.next_call().branch
    if same and _has_room(component, loop, call):
        return _watched(component, loop, branch, call, now)
    loop.unwatched()
    started = now(call.device)
    result = component.run_whole(call)
    loop.note(Evaluation(loop.step, branch, None, "learning", None, 0, now(call.device) - started))
    return result


def _has_room(component: CompiledComponent, loop: DenoisingLoop, call: Call) -> bool:
    """Whether all cuts can be watched in this call; in the first one, those that can't are left out.

    Raises:
        OverBudget: there is no room to watch even one cut at the first call.
    """
    recorder, whole = loop.recorder, component.whole_program(call)
    assert recorder is not None
    if not recorder.recorded(0):
        while len(recorder.cuts) > 1 and held_bytes(recorder, whole) > MOST_HELD * component.room_bytes:
            recorder = recorder.without(max(recorder.cuts, key=lambda cut: cut.nbytes))
        loop.recorder = recorder
    while True:
        try:
            for part in watching(recorder, whole):
                component.part_for(part, call)
        except OverBudget:
            if recorder.recorded(0):
                return False
            if len(recorder.cuts) == 1:
                raise
            biggest = max(recorder.cuts, key=lambda cut: cut.nbytes)
            log.warning("no room to watch a feature of %s while learning", format_bytes(biggest.nbytes))
            loop.recorder = recorder = recorder.without(biggest)
        else:
            return True


def _watched(
    component: CompiledComponent,
    loop: DenoisingLoop,
    branch: int,
    call: Call,
    now: Callable[[torch.device], float],
) -> Any:
    recorder, device = loop.recorder, call.device
    assert recorder is not None
    watched, *probes = watching(recorder, component.whole_program(call))
    full = component.part_for(watched, call)
    started = now(device)
    result, values = component.run_part(full, call.flat, recorder.held, device)
    seconds = now(device) - started
    features = dict(zip(recorder.positions, values, strict=True))
    for number, cut in enumerate(recorder.cuts):
        before = recorder.previous(number, branch)
        if before is None or not recorder.probes(number, loop.step):
            continue
        skip = component.part_for(probes[number], call)
        component.place_weights(skip, device)  # other parts are watched here than will run: they move other weights
        started = now(device)
        moved = component.run_part(skip, [*call.flat, *before], [*recorder.held, *values], device)
        taken = now(device) - started
        own = tuple(features[p] for p in cut.positions)
        recorder.probed(number, branch, loop.step, own, distance(moved, result), taken)
    recorder.record(branch, loop.step, features, seconds)
    loop.note(Evaluation(loop.step, branch, None, "learning", None, 0, seconds))
    return result


def nothing_learned(loop: DenoisingLoop, denoiser: str, pipeline: str) -> str:
    """Why a finished loop teaches nothing; empty where it was seen from end to end."""
    assert loop.setting is not None
    steps = len(loop.setting.times)
    if loop.final is None:
        return f"the loop took no step of the scheduler of {pipeline}: does it use a copy?"
    ran = len(loop.kinds)
    return "" if ran == loop.step == steps else f"the loop ran {denoiser} at {ran} of its {steps} steps"


def learn_from(loop: DenoisingLoop, known: list[CutStats]) -> list[CutStats]:
    """Lessons, one a cut, with what a finished loop showed added.

    Args:
        loop: that was learned from, seen from end to end.
        known: lessons of its setting so far.
    """
    recorder, setting = loop.recorder, loop.setting
    assert recorder is not None
    assert setting is not None
    assert loop.final is not None
    beside = (loop.seconds - loop.busy) / len(setting.times)
    rows = recorder.lessons(len(setting.times), beside, tuple(map(tuple, loop.kinds)))
    if not known:
        importance = loop.importance()
        known = [CutStats(c.positions, n, c.nbytes, setting.times, importance) for c, n in recorder.names.items()]
    for lessons in known:
        lesson = next((x for x, c in zip(rows, recorder.cuts, strict=True) if c.positions == lessons.cut), None)
        if lesson is not None:
            lessons.add(lesson, float(loop.final.norm()))
    return known
