"""Duplicate code: stretches of tokens that occur twice in the library. Their number goes down, never up.

Left out: comments, docstrings, imports and signatures, which are alike where functions are called alike.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.source_tree import library_modules

pytestmark = pytest.mark.pure

LEAST = 40  # tokens, five or six lines: shorter ones are how Python is written
MOST = 4  # of them there are; whoever merges some lowers it

_LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


class Token(NamedTuple):
    text: str
    line: int


class Stretch(NamedTuple):
    """A stretch of tokens that occurs in two places."""

    length: int
    places: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.length} tokens: {self.places[0]} and {self.places[1]}"


def _left_out(tree: ast.Module) -> set[int]:
    """Lines of docstrings, imports and signatures."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
                lines |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
            case ast.FunctionDef():
                lines |= {*range(node.lineno, node.body[0].lineno)}
    return lines


def tokens_of(path: Path) -> list[Token]:
    text = path.read_text(encoding="utf-8")
    out = _left_out(ast.parse(text))
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    return [Token(t.string, t.start[0]) for t in found if t.type not in _LAYOUT and t.start[0] not in out]


def duplicates(files: dict[str, list[Token]], least: int = LEAST) -> list[Stretch]:
    """Every two places with the same tokens, as far as they go, the longest first."""
    starts: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, tokens in files.items():
        words = [token.text for token in tokens]
        for start in range(len(words) - least + 1):
            starts[tuple(words[start : start + least])].append((name, start))
    found = []
    for places in starts.values():
        for (name, i), (other, j) in combinations(places, 2):
            one, two = files[name], files[other]
            if (name == other and j - i < least) or (i and j and one[i - 1].text == two[j - 1].text):
                continue  # over itself, or the middle of a longer stretch
            length = least
            while i + length < len(one) and j + length < len(two) and one[i + length].text == two[j + length].text:
                length += 1
            found.append(Stretch(length, (f"{name}:{one[i].line}", f"{other}:{two[j].line}")))
    return sorted(found, reverse=True)


def test_no_more_code_occurs_twice() -> None:
    found = duplicates({name: tokens_of(path) for name, path in library_modules().items()})
    shown = "\n".join(map(str, found))
    assert len(found) <= MOST, f"{len(found)} stretches occur twice, {MOST} did; merge what is one idea:\n{shown}"
    assert len(found) == MOST, f"fewer than before, well done: set MOST to {len(found)}"


def test_a_stretch_that_occurs_twice_is_found_once_and_in_full() -> None:
    body = [Token(text, line) for line, text in enumerate("a=b+c;d=e;f(a,d)")]
    files = {"one": [Token("x", 0), *body], "two": [*body, Token("y", 99)]}
    assert duplicates(files, 6) == [Stretch(len(body), ("one:0", "two:0"))]
    assert duplicates({"one": body, "two": body[:5]}, 6) == []
