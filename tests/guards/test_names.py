"""Sets of names as bits of a number."""

from __future__ import annotations

import pytest

from sicompiler.guards.names import Names

pytestmark = pytest.mark.pure


def test_a_set_of_names_is_a_number() -> None:
    names = Names()
    some, others = names.bits({"scale", "norm"}), names.bits(frozenset({"norm", "sample"}))
    assert set(names.of(some & others)) == {"norm"}
    assert set(names.of(others & ~some)) == {"sample"}
    assert names.bits(frozenset({"norm", "sample"})) == others
    assert len(names) == 3


@pytest.mark.parametrize("keys", [{"b"}, {"b", "d"}, {"b", *map(str, range(9))}], ids=len)
def test_names_are_found_among_keys(keys: set[str]) -> None:
    names = Names()
    names.bits(list("abc"))
    assert names.among(keys) == {"b"}
    names.bits(list("de"))
    assert names.among(keys, since=3) <= keys & set("abcde")
    assert names.among(keys, since=3) >= keys & set("de")
