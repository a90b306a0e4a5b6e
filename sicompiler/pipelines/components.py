"""The components of a diffusers pipeline by name, as they are now: every call of every component asks for them."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch

from sicompiler.guards.identity import version

_CONFIGURATION = "_internal_dict"  # where diffusers keeps it; a component that is set or registered makes a new one

# By pipeline: the class and the version of the configuration that the names of its components were read from, and they.
_names: weakref.WeakKeyDictionary[Any, tuple[tuple[type, int], list[str]]] = weakref.WeakKeyDictionary()


def pipeline_class() -> type | None:
    """The base class of diffusers pipelines; None while diffusers has not loaded it, and so no pipeline can exist."""
    found = getattr(sys.modules.get("diffusers.pipelines.pipeline_utils"), "DiffusionPipeline", None)
    return found if isinstance(found, type) else None


def components_of(pipe: Any) -> dict[str, Any]:
    """What `pipe.components` gives, in the order of the names; diffusers gives them in the order of a set.

    diffusers reads the names from the signature of the class at every look, so they are kept for one class and one
    version of the configuration. What has each name is looked up.
    """
    own, kind = pipe.__dict__, type(pipe)
    if _CONFIGURATION not in own or not _named_by_configuration(kind):
        return dict(sorted(pipe.components.items()))
    read_from = (kind, version(own[_CONFIGURATION]))
    known = _names.get(pipe)
    if known is None or known[0] != read_from or not all(name in own for name in known[1]):
        known = _names[pipe] = (read_from, sorted(pipe.components))
    return {name: own[name] if name in own else getattr(pipe, name) for name in known[1]}


def _named_by_configuration(kind: Any) -> bool:
    """Whether pipelines of a class give their components as diffusers' base class does."""
    base: Any = pipeline_class()
    return base is not None and kind.components is base.components and kind.config is base.config


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The components of a pipeline that have weights, by name."""
    return {name: part for name, part in components_of(pipe).items() if isinstance(part, torch.nn.Module)}
