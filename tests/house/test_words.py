"""The words of the house: one name for one thing, the field's words in place of our own, sentences that stand alone."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.source_tree import ROOT, files, library_modules

pytestmark = pytest.mark.pure

# What was said before, and what the field calls it (docs/glossary.md).
RETIRED = {
    r"far[ _-]memory|FarMemory|\bis_far\b|\bgoes_far\b": "offload",
    r"\bcompute_again\b|\brecomputed\b|RECOMPUTED": "rematerialize",
    r"\bHaloTally\b|\bTally\b": "RegionCost, HaloRegionCost",
    r"\bEvaluator\b": "OpCosts",
    r"\bSettled\b|search\.settle\b": "OffloadAssignment, assign_offload",
    r"\bComponentState\b|\bPipelineState\b": "CompiledComponent, CompiledPipeline",
    r"\bLessonBook\b": "CalibrationFile",
    r"\bops\.(arrive|depart)\b|`(arrive|depart)`": "wait_loads, wait_stores",
}
HISTORY = {ROOT / "CHANGELOG.md", ROOT / "sicompiler" / "renamed.py", ROOT / "tests" / "runtime" / "test_renamed.py"}
FOLDERS = ("sicompiler", "passes", "planners", "tests", "benchmarks", "examples", "docs")
TEXTS = [
    path
    for folder in FOLDERS
    for path in files(ROOT / folder)
    if path.suffix in {".py", ".md"} and path not in HISTORY and "decisions" not in path.parts
]
LEANING = re.compile(r"(The same|As above|Likewise|Those of|That of|Of)\b")


@pytest.mark.parametrize("pattern", RETIRED)
def test_retired_words_stay_retired(pattern: str) -> None:
    retired = re.compile(pattern)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in TEXTS
        if path.name != "test_words.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if retired.search(line)
    ]
    assert not found, f"say {RETIRED[pattern]}:\n" + "\n".join(found)


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for module, path in library_modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_docstrings_say_their_own_noun() -> None:
    leaning = [
        f"{module}: {node.name}"
        for module, path in library_modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and LEANING.match(ast.get_docstring(node) or "")
    ]
    assert not leaning, f"readable without the one above? {leaning}"
