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
CPP = [path for path in files(ROOT / "tests") if path.suffix in {".cpp", ".h"}]
TEXTS = [*CPP, *(path for folder in FOLDERS for path in files(ROOT / folder) if path.suffix in TEXT)]
TEXTS += [
    path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in TEXT and path.name != ".coverage"
]


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.fixture(scope="module")
def library() -> dict[str, ast.Module]:
    """Every module of the library, parsed."""
    return {module: _parse(path) for module, path in sorted(MODULES.items())}


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
def test_files_stay_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON + CPP}
    long = [f"{path.relative_to(ROOT)}: {count} lines" for path, count in lines.items() if count > MAX_LINES]
    assert not long, f"at most {MAX_LINES}: split by operator family or by idea:\n" + "\n".join(long)


@pytest.mark.pure
def test_modules_have_docstrings() -> None:
    bare = [str(path.relative_to(ROOT)) for path in PYTHON if not ast.get_docstring(_parse(path))]
    assert not bare, "no module docstring: one sentence on what the file is for:\n" + "\n".join(bare)


@pytest.mark.pure
def test_public_names_have_docstrings(library: dict[str, ast.Module]) -> None:
    bare = [
        f"{module}: {name} (line {node.lineno})"
        for module, tree in library.items()
        for name, node in _public(tree.body)
        if not ast.get_docstring(node)
    ]
    assert not bare, "no docstring:\n" + "\n".join(bare)


@pytest.mark.pure
def test_the_library_does_not_print(library: dict[str, ast.Module]) -> None:
    lines = [
        f"{module}:{node.lineno}"
        for module, tree in library.items()
        if not module.startswith(MAY_PRINT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not lines, "print(): log, or return text:\n" + "\n".join(lines)


def test_no_paths_of_a_machine() -> None:
    found = [line for path in TEXTS for line in _matching_lines(path, MACHINE_PATH)]
    assert not found, "\n".join(found)


@pytest.mark.pure
def test_to_dos_name_an_issue() -> None:
    found = [line for path in PYTHON + CPP for line in _matching_lines(path, TO_DO)]
    assert not found, "name the issue (#123) or do it:\n" + "\n".join(found)
