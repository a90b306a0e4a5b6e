"""Guards of lists, tuples, sets and dicts, with their contents, however long."""

from __future__ import annotations

import hashlib
import operator
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sicompiler.guards.base import Guard, Visitor
from sicompiler.guards.identity import token, version
from sicompiler.guards.plain import is_plain, plain_fact
from sicompiler.guards.quick import Quick, is_code

_SHOWN = 16  # entries of a list of numbers that are told one by one


def _identical(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


class NumbersGuard(Guard):
    """A list, tuple or deque of nothing but plain values: compared entry by entry, by identity first."""

    __slots__ = ("address", "entries", "fact", "kind")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.address, self.kind, self.entries = id(value), type(value), list(value)
        self.fact = _numbers_fact(self.entries)
        walk.note(path, ("numbers", walk.kind(self.kind), self.fact))
        walk.keep(value)

    def holds(self, value: Any) -> bool:
        """Whether the same sequence has the same entries."""
        if type(value) is not self.kind:
            return False
        if _identical(value, self.entries):
            return True
        return all(map(is_plain, value)) and _numbers_fact(value) == self.fact

    def flatten(self, value: Any, quick: Quick) -> bool:
        """Nothing, of a tuple; the entries by identity, of a list."""
        if type(value) is list:
            quick.listed(value)
        return type(value) in (tuple, list)


def _numbers_fact(entries: Sequence[Any]) -> Hashable:
    facts = tuple(map(plain_fact, entries))
    if len(facts) <= _SHOWN:
        return facts
    printed = list(map(repr, facts))
    return (len(facts), short_digest(printed), short_digest(sorted(printed)))


def short_digest(texts: list[str]) -> str:
    """A hash of texts, where only whether they are the same matters."""
    return hashlib.blake2b("\n".join(texts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class SequenceGuard(Guard):
    """A list, tuple or deque, entry by entry."""

    __slots__ = ("address", "guards", "kind")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.address, self.kind = id(value), type(value)
        walk.note(path, ("length", walk.kind(self.kind), len(value)))
        walk.keep(value)
        self.guards = [walk.visit(entry, f"{path}[{index}]") for index, entry in enumerate(value)]

    def holds(self, value: Any) -> bool:
        """Whether the same sequence has the same entries."""
        if id(value) != self.address or type(value) is not self.kind or len(value) != len(self.guards):
            return False
        return all(guard.holds(entry) for guard, entry in zip(self.guards, value, strict=True))

    def flatten(self, value: Any, quick: Quick) -> bool:
        """The entries by identity, where they are code or can't change, and what is inside of them."""
        if type(value) not in (tuple, list) or not is_code(value):
            return False
        if type(value) is list:
            quick.listed(value)
        return all(quick.inside(entry, guard) for guard, entry in zip(self.guards, value, strict=True))


class SetGuard(Guard):
    """A set: plain members by value, all others by identity."""

    __slots__ = ("address", "fact", "strings")

    def __init__(self, value: Any, path: str, walk: Visitor) -> None:
        self.address, self.fact = id(value), _members(value)
        self.strings = frozenset(value) if all(type(member) is str for member in value) else None
        walk.note(path, ("set", walk.kind(type(value)), self.fact))
        walk.keep(value)

    def holds(self, value: Any) -> bool:
        """Whether the same set has the same members."""
        if id(value) != self.address:
            return False
        return value == self.strings or _members(value) == self.fact

    def flatten(self, value: Any, quick: Quick) -> bool:
        """The members, where they are strings or code."""
        told_apart = all(type(member) is str or isinstance(member, (type, types.FunctionType)) for member in value)
        if not told_apart or type(value) not in (set, frozenset):
            return False
        quick.members(value)
        return True


def _members(value: Any) -> Hashable:
    return frozenset(plain_fact(member) if is_plain(member) else token(member) for member in value)


class MappingGuard(Guard):
    """A dict, in its order: keys as members of sets are, values deep."""

    __slots__ = ("address", "changing", "guards", "kind", "version")

    def __init__(self, value: dict[Any, Any], path: str, walk: Visitor) -> None:
        self.address, self.kind, self.version = id(value), type(value), version(value)
        walk.note(path, ("keys", walk.kind(self.kind), tuple(map(_key_fact, dict.keys(value)))))
        walk.keep(value)
        self.guards = {key: walk.visit(entry, f"{path}[{key!r:.40}]") for key, entry in dict.items(value)}
        self.changing = {key: guard for key, guard in self.guards.items() if not guard.settled}

    def holds(self, value: Any) -> bool:
        """Whether the same dict has the same entries."""
        if id(value) != self.address or type(value) is not self.kind:
            return False
        now = version(value)
        guards = self.changing
        if now != self.version:
            guards = self.guards
            if not _identical(list(dict.keys(value)), list(guards)):
                return False
        for key, guard in guards.items():
            if not guard.holds(dict.__getitem__(value, key)):
                return False
        self.version = now
        return True

    def flatten(self, value: Any, quick: Quick) -> bool:
        """The version, where all of it is code or can't change."""
        return flatten_entries(value, self.changing, quick)


class ProxyGuard(Guard):
    """A read-only view of a dict (`mappingproxy`), which may change behind it: keys as in a dict, values deep."""

    __slots__ = ("address", "guards")

    def __init__(self, value: types.MappingProxyType[Any, Any], path: str, walk: Visitor) -> None:
        self.address = id(value)
        walk.note(path, ("keys", walk.kind(type(value)), tuple(map(_key_fact, value))))
        self.guards = {key: walk.visit(entry, f"{path}[{key!r:.40}]") for key, entry in value.items()}

    def holds(self, value: Any) -> bool:
        """Whether the same view shows the same entries."""
        if id(value) != self.address or type(value) is not types.MappingProxyType:
            return False
        if not _identical(list(value), list(self.guards)):
            return False
        return all(guard.holds(value[key]) for key, guard in self.guards.items())


def flatten_entries(entries: dict[Any, Any], changing: Mapping[Any, Guard], quick: Quick) -> bool:
    """`Guard.flatten` of a dict.

    Args:
        entries: the dict.
        changing: guards of those entries that may change inside themselves.
        quick: has the lists.
    """
    if not all(map(is_code, dict.values(entries))):
        return False
    quick.versioned(entries)
    return all(quick.inside(dict.__getitem__(entries, key), guard) for key, guard in changing.items())


def _key_fact(key: Any) -> Hashable:
    return plain_fact(key) if is_plain(key) else token(key)


class AttributesGuard(Guard):
    """The attributes of an object, deep, in whatever order: the dict behind it.

    Args:
        entries: the dict.
        seen: what of it counts, where that is less.
        path: of the object.
        walk: who goes on.
    """

    __slots__ = ("changing", "guards", "version")

    def __init__(self, entries: dict[str, Any], seen: Mapping[str, Any], path: str, walk: Visitor) -> None:
        self.version = version(entries)
        dot = f"{path}." if path else ""
        self.guards = {name: walk.visit(seen[name], f"{dot}{name}") for name in sorted(seen, key=str)}
        self.changing = {name: guard for name, guard in self.guards.items() if not guard.settled}

    def hold(self, entries: dict[str, Any], seen: Mapping[str, Any]) -> bool:
        """Whether what counts of a dict is as it was, given that some of it was set.

        Args:
            entries: the dict.
            seen: what of it counts.
        """
        if len(seen) != len(self.guards):
            return False
        for name, guard in self.guards.items():
            if name not in seen or not guard.holds(seen[name]):
                return False
        self.version = version(entries)
        return True

    def holds(self, value: dict[str, Any]) -> bool:
        """Whether the attributes are as they were; all of them count."""
        if version(value) != self.version:
            return self.hold(value, value)
        return all(guard.holds(value[name]) for name, guard in self.changing.items())

    def flatten(self, value: dict[str, Any], quick: Quick) -> bool:
        """The version of the dict, where all of it is code or can't change."""
        return flatten_entries(value, self.changing, quick)
