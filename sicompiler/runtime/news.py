"""Why a call needs a new plan, for people: what is not as it was at the call before."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from sicompiler.guards import changes


@dataclass(frozen=True)
class KnownCall:
    """What was known of a call.

    Attributes:
        key: made by `call_key`.
        facts: what the guards of the model have seen.
    """

    key: Hashable
    facts: Mapping[str, Hashable]


def news(before: KnownCall | None, after: KnownCall) -> str:
    """What changed between two calls: of the model, or else of the inputs.

    Args:
        before: the earlier call; None for the first one.
        after: the later one.
    """
    if before is None:
        return "it is the first call"
    of_the_model = changes(before.facts, after.facts)
    if of_the_model:
        return of_the_model
    (spec, leaves, same, *_), (new_spec, new_leaves, new_same, *_) = _parts(before.key), _parts(after.key)
    if spec != new_spec or len(leaves) != len(new_leaves):
        return "it is called with other arguments"
    pairs = [(old, new) for old, new in zip(leaves, new_leaves, strict=True) if old != new]
    if not pairs and same != new_same:
        return "other arguments are one and the same tensor"
    if not pairs:
        return "its plan was dropped"
    old, new = pairs[0]
    if len(old) == len(new) == 4:
        what = "shapes" if old[0] != new[0] else "layouts"
        return f"new input {what} {_layout(old, what)} -> {_layout(new, what)}"
    return f"an argument {_value(old)} -> {_value(new)}"


def _parts(key: Any) -> tuple[Any, ...]:
    return tuple(key)


def _layout(leaf: tuple[Any, ...], what: str) -> str:
    return str(leaf[0]) if what == "shapes" else f"{leaf[0]} {leaf[2]} {leaf[3]} strides {leaf[1]}"


def _value(leaf: Any) -> str:
    return f"{leaf[-1]!r:.40}" if isinstance(leaf, tuple) and leaf else f"{leaf!r:.40}"
