"""A pipeline told to people and to machines: one row a phase and component, predicted and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sicompiler.reports.report import Report
from sicompiler.reports.summary import pairs, plain, table
from sicompiler.units import format_bytes


@dataclass(frozen=True)
class PhaseRow:
    """One component at one input shape. All bytes are of the whole pipeline while it runs, unless they say otherwise.

    Attributes:
        phase: encode, denoise or decode.
        component: and its method, e.g. `vae.decode`.
        resident: the components whose weights are on the device.
        weights_bytes: of all of them.
        held_bytes: latents, embeddings and finished frames that the pipeline holds beside the inputs of the call.
        activations_bytes: inputs, intermediate values and workspace of the component at its predicted peak.
        unsliced_peak_bytes: predicted without slicing.
        predicted_peak_bytes: predicted for the plan; None where the component runs untouched.
        floor_bytes: the smallest budget that works, as far as is known: of an untouched component the first call tells;
            None where nobody had to look for it.
        floor_operator: what sets it.
        budget_bytes: of the pipeline.
        measured_peak_bytes: the highest measured, None before `verify`.
        calls: how often it ran.
        note: why a component runs untouched.
        untouched_peak_bytes: predicted for the model as it is; None where nobody looked at that.
        not_measured: why its newest call was not measured, though it should have been.
    """

    phase: str
    component: str
    resident: tuple[str, ...]
    weights_bytes: int
    held_bytes: int
    activations_bytes: int | None
    unsliced_peak_bytes: int | None
    predicted_peak_bytes: int | None
    floor_bytes: int | None
    floor_operator: str
    budget_bytes: int
    measured_peak_bytes: int | None = None
    calls: int = 0
    note: str = ""
    not_measured: str = ""
    untouched_peak_bytes: int | None = None

    @property
    def fits(self) -> bool:
        """Whether what is known of it is within the budget: measured <= predicted <= budget."""
        if self.predicted_peak_bytes is None:  # untouched: what is measured counts, before that what is known
            known = self.floor_bytes if self.measured_peak_bytes is None else self.measured_peak_bytes
            return (known or 0) <= self.budget_bytes
        return (self.measured_peak_bytes or 0) <= self.predicted_peak_bytes <= self.budget_bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"resident": list(self.resident), "fits": self.fits}


@dataclass(frozen=True)
class PipelineReport:
    """What was planned for a pipeline. `print(report)` shows totals, then one row a phase and component.

    Attributes:
        pipeline: the name of its class.
        budget_bytes: what was asked for.
        phases: in order; empty before the first call.
        components: the report of each component, by name and method.
        waiting: what has not run yet, and so is not planned.
    """

    pipeline: str
    budget_bytes: int
    phases: tuple[PhaseRow, ...]
    components: Mapping[str, Report] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every phase is within the budget."""
        return all(row.fits for row in self.phases)

    @property
    def predicted_peak_bytes(self) -> int | None:
        """The predicted peak of the phase that needs most; None before the first call."""
        return max((row.predicted_peak_bytes or 0 for row in self.phases), default=None)

    @property
    def floor_bytes(self) -> int | None:
        """The smallest budget for what has run so far; None where it is not known of some phase."""
        found = [row.floor_bytes for row in self.phases]
        return None if None in found else max((n for n in found if n is not None), default=None)

    def __str__(self) -> str:
        if not self.phases:
            budget = format_bytes(self.budget_bytes)
            return f"{self.pipeline}: nothing is planned yet within {budget}; the first call plans\n"
        notes = [f" {row.component} runs untouched: {row.note}" for row in self.phases if row.note]
        notes += [f" {row.component} was not measured: {row.not_measured}" for row in self.phases if row.not_measured]
        notes += [f" floor of {row.component}: {row.floor_operator}" for row in self.phases if row.floor_operator]
        return plain([self._totals(), self._table()]) + "\n".join(notes) + "\n"

    def to_json(self) -> str:
        """Totals and rows, as `sicompiler plan --json` prints them for a pipeline."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes."""
        return {
            "pipeline": self.pipeline,
            "budget_bytes": self.budget_bytes,
            "fits": self.fits,
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "floor_bytes": self.floor_bytes,
            "phases": [row.to_dict() for row in self.phases],
            "waiting": list(self.waiting),
        }

    def _totals(self) -> Any:
        rows = [
            ("pipeline", self.pipeline),
            ("predicted peak", _size(self.predicted_peak_bytes)),
            ("floor", _size(self.floor_bytes)),
            ("budget", format_bytes(self.budget_bytes)),
            ("fits", "yes" if self.fits else "NO"),
        ]
        if self.waiting:
            rows.append(("not run yet", ", ".join(self.waiting)))
        return pairs("", rows)

    def _table(self) -> Any:
        columns = (
            *("phase", "component", "calls>", "resident", "weights>", "held>", "activations>"),
            *(("untouched>",) if self._untouched else ()),
            *("unsliced>", "predicted>", "measured>", "floor>"),
        )
        return table("", columns, [_cells(row, untouched=self._untouched) for row in self.phases])

    @property
    def _untouched(self) -> bool:
        return any(row.untouched_peak_bytes is not None for row in self.phases)


def _cells(row: PhaseRow, *, untouched: bool) -> tuple[str, ...]:
    return (
        row.phase,
        row.component,
        str(row.calls),
        ", ".join(row.resident),
        format_bytes(row.weights_bytes),
        format_bytes(row.held_bytes),
        _size(row.activations_bytes),
        *((_size(row.untouched_peak_bytes),) if untouched else ()),
        _size(row.unsliced_peak_bytes),
        _size(row.predicted_peak_bytes),
        _size(row.measured_peak_bytes),
        _size(row.floor_bytes),
    )


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)
