"""The pipelines that share a component: each has a budget, records of its own, and calls that have to be told apart."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import torch

from sicompiler.compiled_module import CompiledModule
from sicompiler.compiler.planner import Offload
from sicompiler.compiler.search import Progress
from sicompiler.errors import BadInput
from sicompiler.pipelines.reserved import Reserved
from sicompiler.pipelines.roles import Role
from sicompiler.runtime.faults import locals_of

if TYPE_CHECKING:
    from sicompiler.pipelines.pipeline import CompiledPipeline
    from sicompiler.pipelines.records import Record


@dataclass(eq=False)
class Tenant:
    """One pipeline that has taken a component over.

    Attributes:
        pipeline: its state.
        role: what the component does in it.
        budget_bytes: of the whole pipeline.
        offload: what it allows.
        progress: told about long work of its calls.
        records: what happened in its calls.
        reserved: by the rest of the pipeline, in its newest call.
    """

    pipeline: CompiledPipeline
    role: Role
    budget_bytes: int
    offload: Offload
    progress: Progress | None = None
    records: list[Record] = field(default_factory=list)
    reserved: Reserved = field(default_factory=Reserved)

    @property
    def alive(self) -> bool:
        """Whether its pipeline still exists; one that was dropped without a release has no say any more."""
        return self.pipeline.pipe is not None


class Tenants(threading.local):
    """The pipelines of one component, and which of them each thread serves.

    What is shared has to suit all of them: the smallest budget holds, and offload memory where all allow it.
    """

    def __init__(self, shared: list[Tenant]) -> None:
        self._shared = shared  # one list for all threads
        self._serving: Tenant | None = None

    @property
    def living(self) -> list[Tenant]:
        """Those whose pipelines exist; all of them where none does, as components may outlive their pipeline."""
        return [tenant for tenant in self._shared if tenant.alive] or list(self._shared)

    @property
    def any_alive(self) -> bool:
        """Whether some pipeline exists that has the component."""
        return any(tenant.alive for tenant in self._shared)

    @property
    def current(self) -> Tenant:
        """The one that this thread serves; outside of calls the first."""
        return self._serving or self.living[0]

    @property
    def budget_bytes(self) -> int:
        """What holds for a component that several pipelines share."""
        return min(tenant.budget_bytes for tenant in self.living)

    @property
    def offload(self) -> Offload:
        """What all of them allow."""
        return "none" if any(tenant.offload == "none" for tenant in self.living) else "auto"

    def admit(self, tenant: Tenant) -> None:
        """Take a pipeline in; one that was there before has another budget or role now. Dropped ones are forgotten.

        Raises:
            BadInput: plans of the pipelines that stay are chosen by another planner.
        """
        stay = [other for other in self._shared if other.alive and not _same(other, tenant)]
        for other in stay:
            if other.pipeline.planner != tenant.pipeline.planner:
                raise BadInput(
                    f"the {tenant.role.component} of this {tenant.pipeline.name} is shared with a "
                    f"{other.pipeline.name} that was compiled with planner={other.pipeline.planner.name!r}: give the "
                    "same one, or release that pipeline"
                )
        self._shared[:] = [*stay, tenant]

    def dismiss(self, pipeline: CompiledPipeline, role: Role) -> bool:
        """Let a pipeline go.

        Returns:
            Whether others are left whose pipelines exist.
        """
        left = [t for t in self._shared if t.pipeline is not pipeline or t.role != role]
        if not left:
            return False  # the last one stays, as reports of it may be kept
        self._shared[:] = left
        return any(tenant.alive for tenant in left)

    def of(self, pipeline: CompiledPipeline, role: Role) -> Tenant | None:
        """What is kept for a pipeline."""
        return next((t for t in self._shared if t.pipeline is pipeline and t.role == role), None)

    @contextmanager
    def serving(self, tenant: Tenant | None) -> Iterator[Tenant]:
        """Serve a pipeline in a block, in this thread.

        Args:
            tenant: None looks for the pipeline whose call led here: the innermost one that is compiled. Where there is
                none, the call is served like one of the pipeline of the smallest budget.
        """
        before, self._serving = self._serving, tenant or self._calling()
        try:
            yield self._serving
        finally:
            self._serving = before

    def _calling(self) -> Tenant:
        living = self.living
        if len(living) > 1:
            by_pipe = {id(tenant.pipeline.pipe): tenant for tenant in reversed(living)}
            frame: FrameType | None = sys._getframe(1)
            while frame is not None:
                if frame.f_code.co_varnames[:1] == ("self",):
                    tenant = by_pipe.get(id(locals_of(frame).get("self")))
                    if tenant is not None:
                        return tenant
                frame = frame.f_back
        return min(living, key=lambda tenant: tenant.budget_bytes)


class SharedState(CompiledModule):
    """A taken-over method of a component that may have several tenants.

    Args:
        model: the component.
        tenant: the first pipeline.

    Attributes:
        beneath: the state by which the model was compiled on its own before, which comes back in the end.
    """

    def __init__(self, model: torch.nn.Module, tenant: Tenant) -> None:
        self.tenants = Tenants([tenant])
        self.beneath: CompiledModule | None = None
        super().__init__(
            model,
            tenant.budget_bytes,
            None,
            tenant.progress,
            tenant.role.method,
            tenant.offload,
            path=tenant.role.component,
            store=tenant.pipeline.store,
            planner=tenant.pipeline.planner,
        )

    @property
    def pipeline(self) -> CompiledPipeline:
        """The pipeline that is served."""
        return self.tenants.current.pipeline

    @property
    def role(self) -> Role:
        """What the component does in the pipeline that is served."""
        return self.tenants.current.role

    @property
    def records(self) -> list[Record]:
        """What happened in the calls of the pipeline that is served."""
        return self.tenants.current.records

    @records.setter
    def records(self, records: list[Record]) -> None:
        self.tenants.current.records = records

    @property
    def reserved(self) -> Reserved:
        """Held by the rest of the pipeline that is served, in its newest call."""
        return self.tenants.current.reserved

    @reserved.setter
    def reserved(self, reserved: Reserved) -> None:
        self.tenants.current.reserved = reserved


def _same(one: Tenant, other: Tenant) -> bool:
    return one.pipeline.pipe is other.pipeline.pipe and one.role == other.role
