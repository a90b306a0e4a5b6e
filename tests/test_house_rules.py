"""House rules a linter doesn't know: the length of files, docstrings, no print, no machine's paths, no bare to-dos."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source_tree import ROOT, files, library_modules

MAX_LINES = 400
FOLDERS = ("sicompiler", "passes", "planners", "tests", "benchmarks", "examples", "docs", ".ci", ".github")
TEXT = {".cfg", ".css", ".ini", ".j2", ".json", ".jsonl", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}
MAY_PRINT = ("sicompiler.cli", "sicompiler.demo")

# Written in pieces, so that this file passes its own test.
MACHINE_PATH = re.compile(r"(?<![\w.:/<>-])(?:file:/)?/(?:home|root|work|Users|mnt|opt|srv|scratch|tmp)/\w")
TO_DO = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b(?!.*#\d+)")

MODULES = library_modules()
PYTHON = [path for folder in FOLDERS for path in files(ROOT / folder, "*.py")]
TEXTS = [path for folder in FOLDERS for path in files(ROOT / folder) if path.suffix in TEXT]
TEXTS += [
    path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in TEXT and path.name != ".coverage"
]

python_files = pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
library_files = pytest.mark.parametrize("module", sorted(MODULES))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _public(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public classes, functions and methods; left out: dunders (their class explains them), overloads, overrides."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
        if not decorators & {"overload", "override", "setter", "deleter"}:
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, f"{prefix}{node.name}.")


def _matching_lines(path: Path, pattern: re.Pattern[str]) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{i}: {line.strip()[:160]}" for i, line in enumerate(lines, 1) if pattern.search(line)
    ]


@pytest.mark.pure
@python_files
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines, at most {MAX_LINES}: split it by operator family or by idea"


@pytest.mark.pure
@python_files
def test_modules_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(_parse(path)), "no module docstring: one sentence on what this file is for"


@pytest.mark.pure
@library_files
def test_public_names_have_docstrings(module: str) -> None:
    bare = [
        f"{name} (line {node.lineno})"
        for name, node in _public(_parse(MODULES[module]).body)
        if not ast.get_docstring(node)
    ]
    assert not bare, f"no docstring: {', '.join(bare)}"


@pytest.mark.pure
@library_files
def test_the_library_does_not_print(module: str) -> None:
    if module.startswith(MAY_PRINT):
        return
    calls = [node for node in ast.walk(_parse(MODULES[module])) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not lines, f"print() on lines {lines}: log, or return text"


def test_no_paths_of_a_machine() -> None:
    found = [line for path in TEXTS for line in _matching_lines(path, MACHINE_PATH)]
    assert not found, "\n".join(found)


@pytest.mark.pure
def test_to_dos_name_an_issue() -> None:
    found = [line for path in PYTHON for line in _matching_lines(path, TO_DO)]
    assert not found, "name the issue (#123) or do it:\n" + "\n".join(found)
