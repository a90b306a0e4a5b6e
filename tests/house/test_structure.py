"""The structure of the library: no circles between files, devices named in their tables alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import networkx as nx
import pytest

from tests.source_tree import library_modules

pytestmark = pytest.mark.pure

MODULES = library_modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _imports(node: ast.AST) -> Iterator[str]:
    """What a module imports when it runs, inside functions too; what is for type checkers only is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module is not None:
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name if name in MODULES else child.module for name in names)
        yield from _imports(child)


def test_files_import_each_other_in_no_circle() -> None:
    graph = nx.DiGraph((name, other) for name, tree in TREES.items() for other in _imports(tree) if other in MODULES)
    circles = [sorted(names) for names in nx.strongly_connected_components(graph) if len(names) > 1]
    assert not circles, f"what they share belongs into a file below them: {circles}"


def test_kinds_of_device_are_named_in_their_tables_alone() -> None:
    """Everything else asks the row of a device (`sicompiler.device`); the columns of workspace have their names."""
    kinds = {"cuda", "cuda-before-ampere", "xpu", "mps"}
    named = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        if not module.startswith(("sicompiler.device", "sicompiler.facts.workspace."))
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and node.value in kinds)
        or (isinstance(node, ast.Attribute) and node.attr in kinds and ast.unparse(node.value) == "torch")
    ]
    assert named == []
