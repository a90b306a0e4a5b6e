"""Which idle component of a pipeline leaves the device first: one policy, for a running pipeline and for its plans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sicompiler.pipelines.roles import Phase


@dataclass(frozen=True)
class IdleComponent:
    """A component that is on the device while another one runs.

    Attributes:
        name: in the pipeline.
        phases: in which it runs; empty for one that is registered and never runs.
        weights_bytes: what its leaving frees.
    """

    name: str
    phases: frozenset[Phase]
    weights_bytes: int


def eviction_order(idle: Iterable[IdleComponent], now: Phase) -> tuple[str, ...]:
    """The names of idle components, those that leave first at the front.

    First go those that never run, then those whose phases are over, then those that run in this phase or a later one
    and have to be brought back; among equals the largest, so that as few as possible move; then by name, so that the
    order is always the same.

    Args:
        idle: all components but the one that runs.
        now: the phase of the one that runs.
    """
    order = list(Phase)

    def price(component: IdleComponent) -> tuple[int, int, str]:
        comes = any(order.index(phase) >= order.index(now) for phase in component.phases)
        return (1 + comes if component.phases else 0, -component.weights_bytes, component.name)

    return tuple(component.name for component in sorted(idle, key=price))
