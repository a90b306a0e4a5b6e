"""Decisions of a live model, planned and run: which trace holds for the call at hand.

What a model decides by (`capture.decisions`) is a program like any other: it is planned within the same budget, and it
runs before the plan of the model does. Decisions follow one another: the first is the same for every call of one shape,
the next depends on how the first came out. So they are kept by the outcomes before them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sicompiler.capture import Source, named_tensors, tensors_now
from sicompiler.capture.decisions import Decided, Decision, Outcome, numbers_in, outcome_of
from sicompiler.capture.quantised import storage_bytes
from sicompiler.compiler.planner import make_planner
from sicompiler.errors import OverBudget
from sicompiler.plan import Plan
from sicompiler.runtime.compiled import Executable
from sicompiler.units import budget_hint, format_bytes

CallKey = tuple[Hashable, tuple[Outcome, ...]]  # all that a trace depends on but values, and how values decide


@dataclass(frozen=True)
class DecisionStep:
    """A decision that is planned.

    Attributes:
        compiled: its program, rewritten; the plan counts the weights that it reads, and no others.
        decision: what was planned.
    """

    compiled: Executable
    decision: Decision

    @property
    def weights(self) -> frozenset[str]:
        """Names of the weights it reads."""
        bindings = self.decision.program.bindings
        return frozenset(b.name for b in bindings if b.source in (Source.PARAMETER, Source.BUFFER))

    def run(self, arguments: Sequence[Any]) -> torch.Tensor:
        """Run it on its arguments; weights that are offloaded are copied to where it computes."""
        wanted = [node.meta["val"] for node in self.compiled.program.placeholders]
        result: torch.Tensor = self.compiled.call(
            [
                value.to(fake.device) if isinstance(value, torch.Tensor) and isinstance(fake, torch.Tensor) else value
                for value, fake in zip(arguments, wanted, strict=True)
            ]
        )
        return result


class Decisions:
    """What one method of a live model decides by, and how it came out."""

    def __init__(self) -> None:
        self._planned: dict[int, DecisionStep] = {}  # by id of the decision, until the trace that made it is there
        self._learned: dict[int, DecisionStep] = {}  # the same of the traces that were kept; a step keeps its decision
        self._steps: dict[CallKey, DecisionStep] = {}  # by call and by the outcomes before

    def plan(
        self, model: torch.nn.Module, decision: Decision, arguments: Sequence[Any], room_bytes: int, device_type: str
    ) -> torch.Tensor:
        """Plan a decision, and run it for the call that is traced.

        Args:
            model: whose decision.
            decision: of a trace.
            arguments: of its program: the real weights and inputs.
            room_bytes: for what it reads and computes; where that is too little, the lowest peak is taken.
            device_type: what it runs on.
        """
        program = decision.program
        pairs = zip(program.bindings, arguments, strict=True)
        weights = storage_bytes(v for b, v in pairs if b.source in _WEIGHTS)
        planner = make_planner(
            program,
            model=f"what {type(model).__name__} decides at {decision.where}",
            weights_bytes=sum(weights.values()),
            dtype="",
            device_type=device_type,
            phase="decide",
        )
        fits = planner.unsliced_bytes <= room_bytes
        plan = planner.plan(room_bytes if fits else max(room_bytes, planner.floor()[0]))
        step = self._planned[id(decision)] = DecisionStep(Executable(planner.rewrite(plan), plan), decision)
        return step.run(arguments)

    @staticmethod
    def read(decided: Sequence[Decided], limit: int = 2**16) -> frozenset[int]:
        """Which inputs are read to decide, by position among the flat ones; large ones left out, as they are data.

        Args:
            decided: in a trace.
            limit: bytes from which on an input is large.
        """
        nodes = [
            (position, node)
            for one in decided
            for position, node in enumerate(one.decision.program.placeholders)
            if node.users and one.decision.program.bindings[position].source is Source.INPUT
        ]
        return frozenset(p for p, node in nodes if node.meta["val"].nbytes <= limit)

    def learn(self, call: Hashable, decided: Sequence[Decided]) -> None:
        """Keep what was decided in a trace of a call.

        Args:
            call: its key.
            decided: in order.
        """
        before: tuple[Outcome, ...] = ()
        for one in decided:
            step = self._planned.get(id(one.decision)) or self._learned[id(one.decision)]
            self._steps.setdefault((call, before), step)
            self._learned[id(one.decision)] = step
            before += (one.outcome,)
        self._planned.clear()

    def outcomes(self, call: Hashable, model: torch.nn.Module, inputs: Sequence[Any]) -> tuple[Outcome, ...]:
        """How a call decides, as far as it is known what is asked.

        Args:
            call: its key.
            model: the live model.
            inputs: of the call, flat.
        """
        outcomes: tuple[Outcome, ...] = ()
        tensors: dict[str, torch.Tensor] = {}
        while (step := self._steps.get((call, outcomes))) is not None:
            if step.weights and not tensors:  # walking through a model takes longer than most decisions
                tensors = tensors_now(model)
            arguments = step.compiled.program.arguments_of(tensors, inputs)
            outcomes += (outcome_of(numbers_in(step.run(arguments))),)
        return outcomes

    def news(self, key: CallKey) -> str:
        """Why a call has no plan, where another decision is the reason; empty where it is not.

        Args:
            key: of the call, and how it decides.
        """
        call, outcomes = key
        step = self._steps.get((call, outcomes[:-1])) if outcomes else None
        return (
            "" if step is None else f"what is decided at {step.decision.where} comes out as {_shown(outcomes[-1])} now"
        )

    def counted(self, plan: Plan, model: torch.nn.Module, decided: Sequence[Decided]) -> Plan:
        """A plan with the peaks of what is decided before it runs.

        Args:
            plan: of a trace.
            model: whose weights lie where the plan wants them.
            decided: in that trace.

        Raises:
            OverBudget: a decision needs more than there is.
        """
        peak_bytes = plan.predicted_peak_bytes
        known = self._learned | self._planned
        for step in (known[id(one.decision)] for one in decided):
            beside = {
                t.untyped_storage()._cdata: t.untyped_storage().nbytes()
                for name, t in named_tensors(model).items()
                if name not in plan.streamed and name not in step.weights
            }
            needed = step.compiled.plan.predicted_peak_bytes + sum(beside.values())
            if needed > plan.budget_bytes:
                what = f"what is decided at {step.decision.where}"
                raise OverBudget(
                    f"{plan.model} does not fit {format_bytes(plan.budget_bytes)}: {what} needs {format_bytes(needed)} "
                    f"before the model runs. The nearest budget that works is {budget_hint(needed)}",
                    budget_bytes=plan.budget_bytes,
                    floor_bytes=needed,
                    culprit=what,
                )
            peak_bytes = max(peak_bytes, needed)
        return replace(plan, predicted_peak_bytes=peak_bytes)


def _shown(outcome: Outcome) -> str:
    numbers = [str(float.fromhex(x) if isinstance(x, str) else x) for x in outcome[:4]]
    return ", ".join(numbers) + (", ..." if len(outcome) > len(numbers) else "")


_WEIGHTS = (Source.PARAMETER, Source.BUFFER)
