"""What changed, for people: one line for each fact that is another one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

_SHOWN = 3


def differences(before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> list[str]:
    """Paths whose facts differ, those that came first and those of values before those of structure.

    Args:
        before: facts of a walk.
        after: of a later one.
    """
    moved = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return sorted(moved, key=lambda path: (_rank(path, before, after), len(path)))


def _rank(path: str, before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> int:
    if path not in before and f"{path} there" in after and f"{path} there" not in before:
        return 2  # of a class that is met for the first time
    return int(_is_listing(after.get(path, before.get(path))))


def _is_listing(fact: Any) -> bool:
    return fact is not None and fact[0] in ("names", "again")


def _belongs(path: str, other: str, before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> bool:
    """Whether a change goes without saying, beside one that is told: what is inside of it, or the name of it."""
    whole = other not in before or other not in after or before[other][0] != "plain"  # type: ignore[index]
    inside = whole and path.startswith((f"{other}.", f"{other} ", f"{other}["))
    return inside or (_is_listing(after.get(path, before.get(path))) and other.startswith(path.rsplit(" ", 1)[0]))


def changes(before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> str:
    """The changes between two walks in a line, the first few by name.

    Args:
        before: facts of a walk.
        after: of a later one.
    """
    told_paths: list[str] = []
    for path in differences(before, after):
        if not any(_belongs(path, other, before, after) for other in told_paths):
            told_paths.append(path)
    lines = list(dict.fromkeys(line(path, before.get(path), after.get(path)) for path in told_paths))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more


def place(path: str) -> str:
    """A path without what only tells facts apart."""
    for ending in (" class", " kind", " attributes", " children", " there", " object"):
        path = path.removesuffix(ending)
    return f"`{path}`" if path else "the model"


def line(path: str, before: Any, after: Any) -> str:
    """One change: "`unet.mid_block.forward` was replaced", "`up.scaling['x']` 1.0 -> 0.5".

    Args:
        path: what changed.
        before: its fact; None where it is new.
        after: the same of it; None where it is gone.
    """
    where = place(path)
    fact = after or before
    if fact[0] in ("code", "builtin") and " hook " not in path:
        return f"{where} was {'replaced' if after else 'taken away'}"
    if before is None or after is None:
        return f"{where} is {'new' if before is None else 'gone'}"
    if before[0] != after[0]:
        return f"{where} was replaced"
    if fact[0] == "plain":
        return f"{where} {shown(before)} -> {shown(after)}"
    if fact[0] == "layout":
        return f"{where} has another layout: {_layout(before)} -> {_layout(after)}"
    if fact[0] == "numbers" and _are_shown(before, after):
        return f"{where} {_entries(before)} -> {_entries(after)}"
    if fact[0] in ("array", "buffer", "stream", "numbers", "set", "length", "keys") or (
        fact[0] == "tensor" and before[1] == after[1]
    ):
        return f"{where} was written into"
    if fact[0] == "hooks":
        return f"{where} changed"
    if fact[0] == "names":
        new, old = set(after[1]) - set(before[1]), set(before[1]) - set(after[1])
        return f"{where} {' '.join([*(f'+{n}' for n in sorted(new)), *(f'-{n}' for n in sorted(old))])}".rstrip()
    return f"{where} was replaced"


def shown(fact: Any) -> str:
    """The value of a fact."""
    value = fact[2]
    if isinstance(value, tuple) and fact[1] is tuple:
        return f"({', '.join(map(shown, value))})"
    return str(value) if fact[1] in (float, complex, slice) or not isinstance(value, str) else repr(value)


def _are_shown(*facts: Any) -> bool:
    """Whether the entries of lists of numbers are there, and not their hash."""
    return all(isinstance(entry, tuple) for fact in facts for entry in fact[2])


def _entries(fact: Any) -> str:
    return f"[{', '.join(map(shown, fact[2]))}]"


def _layout(fact: Any) -> str:
    if fact[1] is None:
        return "none"
    _, shape, dtype, _, is_meta = fact[1]
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}{' without memory' if is_meta else ''}"
