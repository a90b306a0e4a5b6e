"""What every guard is, and what it asks of the walk that makes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Set
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from sicompiler.guards.quick import Quick


class Guard(ABC):
    """One thing as it was when it was described.

    Attributes:
        settled: nothing inside of it can change: whoever holds the same object has nothing more to ask.
    """

    __slots__ = ()
    settled = False

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether this is the same thing with the same content."""

    def flatten(self, value: Any, quick: Quick) -> bool:
        """Put what has to be asked of a thing in lists that are gone through faster.

        Args:
            value: the thing, held by who asks for it.
            quick: has the lists.

        Returns:
            Whether nothing is left to ask.
        """
        return self.settled


class Visitor(Protocol):
    """The walk, as guards see it.

    Attributes:
        looks_inside: whether values of tensors may be looked at.
        modules: guards of the modules of the model, each of which is asked by itself.
        nothing: dicts of modules that were empty: hooks, parameters, children. Whoever keeps them keeps nothing alive.
    """

    looks_inside: bool
    modules: list[Any]
    nothing: list[dict[str, Any]]

    def visit(self, value: Any, path: str) -> Guard:
        """Describe what is at a path, and give a guard for it."""
        ...

    def note(self, path: str, fact: Hashable) -> None:
        """Write down a fact: part of the key, and of what is told of a change."""
        ...

    def kind(self, kind: type) -> Hashable:
        """Describe a class, once; gives a fact that tells it from others."""
        ...

    def reads(self, names: Iterable[str]) -> None:
        """Some code was met that can read these names."""
        ...

    def module_at(self, module: torch.nn.Module, path: str) -> Guard:
        """Describe a submodule, which has its place here."""
        ...

    def shared_with(self, tensor: torch.Tensor, path: str) -> str | None:
        """The other name of a parameter or buffer that has two."""
        ...

    def has_shared(self, tensors: Iterable[torch.Tensor | None]) -> bool:
        """Whether some of these parameters or buffers have other names too."""
        ...

    def namespace(self, entries: dict[str, Any], names: Set[str] | int, path: str) -> None:
        """Some code was met that can read these names of the globals of a Python module.

        Args:
            entries: the globals.
            names: a set, or one as a number, as the walk has given it.
            path: name of the module.
        """
        ...

    def imported(self, module: str, names: Set[str], of: str) -> None:
        """Some code was met that imports a module while it runs, and can read these names of it.

        Args:
            module: its name.
            names: what may be read.
            of: the name of the module that the code stands in.
        """
        ...

    def keep(self, value: Any, slot: str | None = None) -> None:
        """Something that can change inside itself was met: keep its content, if this walk is to be undone.

        Args:
            value: what was met.
            slot: the one attribute that counts, of an object that keeps it outside of its dict.
        """
        ...

    def environment(self) -> None:
        """Some code was met that reads environment variables, of names that it or other code spells out."""
        ...

    def tensor(self, path: str, tensor: Any) -> None:
        """A tensor was met that is no parameter or buffer of the model."""
        ...
