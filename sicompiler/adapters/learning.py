"""Learning from a loop that runs in full: the features of a few cuts are watched, and each is probed at every step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sicompiler.adapters.component import ComponentState
from sicompiler.adapters.parts import distance, watching
from sicompiler.capture import Program, flatten_inputs
from sicompiler.cost import MACHINES
from sicompiler.errors import BadInput, OverBudget
from sicompiler.planners.cuts import candidate_cuts
from sicompiler.rehash.evaluation import Evaluation
from sicompiler.rehash.loop import DenoisingLoop
from sicompiler.rehash.recorder import Recorder
from sicompiler.search.search import whole_seconds_of
from sicompiler.study import study
from sicompiler.units import format_bytes

log = logging.getLogger("sicompiler")

CUTS = 4  # that one run watches: each is probed at every step
MOST_LEFT = 0.35  # share of the time a skipped evaluation may cost


def recorder_for(component: ComponentState, program: Program) -> Recorder:
    """What watches the features of a few cuts.

    Raises:
        BadInput: there is no legal cut.
    """
    device_type = component.home.type
    graph = study(program, device_type)
    seconds = whole_seconds_of(graph, MACHINES[device_type])
    found = candidate_cuts(graph.facts, seconds, MOST_LEFT)
    if not found:
        raise BadInput(
            f"{component.role.label} has no cut at which it can be entered again with at most {MOST_LEFT:.0%} of "
            "its time left: Step Rehash can't skip any of it"
        )
    names = [node.name for node in program.graph_module.graph.nodes]
    return Recorder({cut: tuple(names[p] for p in cut.positions) for cut in found[:CUTS]})


def record(
    component: ComponentState,
    loop: DenoisingLoop,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    device: torch.device,
    now: Callable[[torch.device], float],
) -> Any:
    """Run the denoiser in full and write down what it shows: its features, and what errors of them do to the output.

    Args:
        component: the denoiser.
        loop: that is learned from.
        args: of the call.
        kwargs: of the same.
        device: where it runs.
        now: the time, once the device has done what it was asked for.

    Returns:
        The output.

    Raises:
        OverBudget: there is no room to watch even one cut.
    """
    recorder, flat = loop.recorder, flatten_inputs(args, kwargs)[0]
    assert recorder is not None
    whole = component.whole_program(args, kwargs)
    while recorder.recorded(0) == 0:
        try:
            for part in watching(recorder, whole):
                component.part_for(part, args, kwargs)
            break
        except OverBudget:
            if len(recorder.cuts) == 1:
                raise
            biggest = max(recorder.cuts, key=lambda cut: cut.nbytes)
            log.warning("no room to watch a feature of %s while learning", format_bytes(biggest.nbytes))
            loop.recorder = recorder = recorder.without(biggest)
    watched, *probes = watching(recorder, whole)
    branch, _, _ = loop.next_call()
    full = component.part_for(watched, args, kwargs)
    started = now(device)
    result, values = component.run_part(full, flat, recorder.held, device)
    seconds = now(device) - started
    features = dict(zip(recorder.positions, values, strict=True))
    for number, cut in enumerate(recorder.cuts):
        before = recorder.previous(number, branch)
        if before is None:
            continue
        skip = component.part_for(probes[number], args, kwargs)
        component.place_weights(skip, device)  # other parts are watched here than will run: they move other weights
        started = now(device)
        moved = component.run_part(skip, [*flat, *before], [*recorder.held, *values], device)
        taken = now(device) - started
        own = tuple(features[p] for p in cut.positions)
        recorder.probed(number, branch, own, distance(moved, result), taken)
    recorder.record(branch, features, seconds)
    loop.note(Evaluation(loop.step, branch, None, "learning", None, 0, seconds))
    return result
