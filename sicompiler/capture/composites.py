"""Composite operators that stay whole while a graph is functionalized, as `ExportedProgram.run_decompositions` has it.

torch looks all of them up each time, and gives each a dozen kernels of its own: a tenth of a second. What it gives an
operator follows from what the operator had, so it is given the same again as long as that is the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch._subclasses.fake_impls as fake_impls
import torch.export.exported_program as exported_program

Kernels = Mapping[Any, Any]


@dataclass(frozen=True)
class _Given:
    """What torch gave operators.

    Attributes:
        kernels: of each operator: those it had, and those it was given.
        fakes: what stands for it under fake tensors, of those that had nothing.
    """

    kernels: Mapping[Any, tuple[Kernels, Kernels]]
    fakes: Mapping[Any, Callable[..., Any]]

    def fits(self, operators: Mapping[Any, Any]) -> bool:
        """Whether torch would give these operators the same."""
        return (
            self.kernels.keys() == operators.keys()
            and all(operator.py_kernels == had for operator, (had, _) in self.kernels.items())
            and self.fakes.keys() == operators.keys() - fake_impls.op_implementations_dict.keys()
        )


_given: list[_Given] = []  # one at most


@contextlib.contextmanager
def composites_kept() -> Iterator[None]:
    """Have no composite operator taken apart that need not be."""
    operators = _operators(tuple(torch.ops._dir), tuple(_registered()))
    known = _given[0] if _given else None
    if known is not None and known.fits(operators):
        with _again(known):
            yield
        return
    had = {operator: dict(operator.py_kernels) for operator in operators}
    fakes = fake_impls.op_implementations_dict
    before = {operator: fakes[operator] for operator in operators if operator in fakes}
    try:
        with exported_program._override_composite_implicit_decomp(operators):
            kernels = {operator: (kept, dict(operator.py_kernels)) for operator, kept in had.items()}
            new = {operator: fakes[operator] for operator in operators if operator not in before}
            _given[:] = [_Given(kernels, new)]
            yield
    finally:
        fakes.update(before)  # torch takes these away too


def _registered() -> list[str]:
    """The composite operators that there are by now."""
    names: list[str] = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    return names


@functools.lru_cache(maxsize=1)
def _operators(namespaces: tuple[str, ...], registered: tuple[str, ...]) -> Mapping[Any, Any]:
    """Those that stay whole.

    Args:
        namespaces: of all operators: a library may add some.
        registered: names of the composite ones.
    """
    kept: Mapping[Any, Any] = exported_program._split_decomp_table_to_cia_and_python_decomp({})[0]
    return kept


@contextlib.contextmanager
def _again(given: _Given) -> Iterator[None]:
    for operator, (_, gives) in given.kernels.items():
        _set(operator, gives)
    fake_impls.op_implementations_dict.update(given.fakes)
    try:
        yield
    finally:
        for operator, (had, _) in given.kernels.items():
            _set(operator, had)
        for operator in given.fakes:
            fake_impls.op_implementations_dict.pop(operator, None)


def _set(operator: Any, kernels: Kernels) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()
