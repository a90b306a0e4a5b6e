"""Every exception a user can meet: one class per decision the user can take."""

from __future__ import annotations


class SicompilerError(Exception):
    """Base of all errors raised on purpose by sicompiler."""


class BadInput(SicompilerError, ValueError):
    """An argument makes no sense: the message says which, what was given and what is allowed."""


class CaptureError(SicompilerError):
    """The model can't be traced to a graph. The message names the operator or the user's source line."""


class NotCompiled(SicompilerError):
    """`release`, `report` or `verify` was called on a model that was never compiled."""


class NotSliceable(SicompilerError):
    """An operator does not commute with slicing along an axis.

    Attributes:
        node: name of the graph node.
        reason: one line saying why.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node}: {reason}")
        self.node = node
        self.reason = reason


class OverBudget(SicompilerError):
    """No plan fits the budget.

    Attributes:
        budget_bytes: what was asked for.
        floor_bytes: the smallest budget that works (weights included).
        culprit: the operator that sets the floor.
    """

    def __init__(self, message: str, *, budget_bytes: int, floor_bytes: int, culprit: str) -> None:
        super().__init__(message)
        self.budget_bytes = budget_bytes
        self.floor_bytes = floor_bytes
        self.culprit = culprit


class StalePlan(SicompilerError):
    """A plan was made for another model, input shape or version."""


class PassError(SicompilerError):
    """A pass broke the contract of its stage: a bug of ours, with the node that shows it."""


class OffloadError(SicompilerError):
    """Nothing to offload to: the folder of the mapped file is missing or full, or host memory can't be pinned."""
