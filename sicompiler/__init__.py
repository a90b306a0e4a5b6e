"""A graph compiler that makes video diffusion models run inside a memory budget, with the same output.

    import sicompiler
    sicompiler.compile_for_budget(unet, gb=11)

Everything is imported when it is first used, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sicompiler._version import __version__
from sicompiler.errors import (
    BadInput,
    CaptureError,
    NotCompiled,
    NotSliceable,
    OffloadError,
    OverBudget,
    SicompilerError,
    StalePlan,
)
from sicompiler.renamed import NAMES

if TYPE_CHECKING:
    from sicompiler.api import compile_for_budget, rehash_report, release, report, supported_pipelines, verify
    from sicompiler.axes.factor_map import FactorMap, Window
    from sicompiler.axes.registry import OpCall
    from sicompiler.demo.pipeline import demo_pipeline
    from sicompiler.facts.workspace.layout import KernelCall
    from sicompiler.operators import rule
    from sicompiler.plan import Plan
    from sicompiler.planners.dp import Problem, Solution
    from sicompiler.planners.registry import Solver, register_planner
    from sicompiler.rehash import Rehash, RehashPlan
    from sicompiler.runtime.faults import OutOfMemory
    from sicompiler.runtime.measure import measure_peak

_LAZY = {
    "FactorMap": "sicompiler.axes.factor_map",
    "KernelCall": "sicompiler.facts.workspace.layout",
    "OpCall": "sicompiler.axes.registry",
    "OutOfMemory": "sicompiler.runtime.faults",
    "Plan": "sicompiler.plan",
    "Problem": "sicompiler.planners.dp",
    "Rehash": "sicompiler.rehash",
    "RehashPlan": "sicompiler.rehash",
    "Solution": "sicompiler.planners.dp",
    "Solver": "sicompiler.planners.registry",
    "Window": "sicompiler.axes.factor_map",
    "compile_for_budget": "sicompiler.api",
    "demo_pipeline": "sicompiler.demo.pipeline",
    "measure_peak": "sicompiler.runtime.measure",
    "register_planner": "sicompiler.planners.registry",
    "rehash_report": "sicompiler.api",
    "release": "sicompiler.api",
    "report": "sicompiler.api",
    "rule": "sicompiler.operators",
    "supported_pipelines": "sicompiler.api",
    "verify": "sicompiler.api",
}

__all__ = [
    "BadInput",
    "CaptureError",
    "FactorMap",
    "KernelCall",
    "NotCompiled",
    "NotSliceable",
    "OffloadError",
    "OpCall",
    "OutOfMemory",
    "OverBudget",
    "Plan",
    "Problem",
    "Rehash",
    "RehashPlan",
    "SicompilerError",
    "Solution",
    "Solver",
    "StalePlan",
    "Window",
    "__version__",
    "compile_for_budget",
    "demo_pipeline",
    "measure_peak",
    "register_planner",
    "rehash_report",
    "release",
    "report",
    "rule",
    "supported_pipelines",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in NAMES:
        raise AttributeError(f"sicompiler.{name} is called {NAMES[name]} now")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
