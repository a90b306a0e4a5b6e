"""What a plan counts positions of, as digests: the graph, its axis rules, and the passes and thresholds around them.

Everything is derived from what is there, nothing is counted up by hand: a rule is the factor map it gives to a call of
this graph, a threshold is its value. So a change nobody thought of is seen, and one that this graph does not meet is
not. Digests are of texts that neither the version of Python nor the order of a set can change.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from enum import Enum
from types import ModuleType
from typing import Any

import sicompiler.axes
import sicompiler.compiler
import sicompiler.facts
import sicompiler.passes
import sicompiler.planners
import sicompiler.regions
from sicompiler import cost
from sicompiler.codec import digest
from sicompiler.compiler.analyzed_graph import AnalyzedGraph
from sicompiler.device import table
from sicompiler.ops import groupnorm
from sicompiler.passes import manager
from sicompiler.plan import current_versions
from sicompiler.regions.region import Region

_PACKAGES = (
    sicompiler.axes,
    sicompiler.compiler,
    sicompiler.facts,
    sicompiler.passes,
    sicompiler.planners,
    sicompiler.regions,
)
_MODULES = (cost, table, groupnorm)
_OF_STEP_REHASH = ("sicompiler.planners.min_cut", "sicompiler.planners.skip_schedule")


def basis(legal: AnalyzedGraph, planned: AnalyzedGraph) -> dict[str, str]:
    """What a plan is for, by the names of its fields.

    Args:
        legal: the legal graph.
        planned: the graph whose positions the plan counts: the same, or one made from it.
    """
    return {
        **current_versions(),
        "settings": settings(),
        "legal_fingerprint": legal.fingerprint,
        "fingerprint": planned.fingerprint,
        "rules": digest(f"{legal.rules} {planned.rules}"),
    }


def region_digest(found: Region) -> str:
    """A short hash of a region: its operators, how each is sliced, what it reads, writes and makes before its loop."""
    return digest(_plain(found))


def settings() -> str:
    """A short hash of the passes, and of every number that decides what becomes of a graph and of a plan."""
    passes = [(stage, [f"{run.__module__}.{run.__qualname__}" for run in runs]) for stage, runs in _stages()]
    return digest(f"{passes} {thresholds()}")


def thresholds() -> dict[str, str]:
    """The constants of all modules between a captured program and a rewritten one that are numbers, by their names."""
    found = ((module, name, getattr(module, name)) for module, name in _constants())
    return {f"{module.__name__}.{name}": _plain(value) for module, name, value in found if _is_number(value)}


@functools.cache
def _constants() -> tuple[tuple[ModuleType, str], ...]:
    """Every constant that may be a threshold: this is asked for with every plan, and names stay what they are."""
    return tuple((m, name) for m in _threshold_modules() for name in sorted(vars(m)) if name.lstrip("_").isupper())


def _threshold_modules() -> tuple[ModuleType, ...]:
    names = [
        name
        for package in _PACKAGES
        for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if name not in _OF_STEP_REHASH and name != __name__
    ]
    return (*_MODULES, *(importlib.import_module(name) for name in sorted(names)))


def _stages() -> list[tuple[str, tuple[manager.Pass, ...]]]:
    return list(manager.PIPELINE.items())


def _is_number(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(_is_number(part) for part in value.values())
    if isinstance(value, (tuple, list)):
        return bool(value) and all(_is_number(part) for part in value)
    return isinstance(value, (int, float))


def _plain(value: Any) -> str:
    """A text of a value that is the same in every process."""
    if isinstance(value, Enum):
        return str(value.value)
    if hasattr(value, "__dataclass_fields__"):
        return f"({','.join(_plain(getattr(value, name)) for name in value.__dataclass_fields__)})"
    if isinstance(value, Mapping):
        return f"{{{','.join(sorted(f'{_plain(k)}:{_plain(v)}' for k, v in value.items()))}}}"
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(_plain, value))}]"
    return repr(value)
