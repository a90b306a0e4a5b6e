"""The documentation: nothing public is missing from the reference, and every page is within reach of a reader."""

from __future__ import annotations

import re

import pytest

import sicompiler
from tests.house.test_layers import LAYERS
from tests.source_tree import ROOT

pytestmark = pytest.mark.pure

DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: (?:\w+\.)+(\w+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE))
    errors = {name for name in sicompiler.__all__ if name in vars(sicompiler.errors)}  # one entry shows them all
    assert "errors" in shown
    assert set(sicompiler.__all__) - errors - {"__version__"} == shown - {"errors"}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert set(re.findall(r"[\w-]+\.md", navigation)) == {path.name for path in DOCS.glob("*.md")}


def test_the_table_of_layers_is_that_of_the_tests() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {name: int(layer) for layer, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert shown == {name: layer for name, layer in LAYERS.items() if name != "_version"}


def test_every_page_and_decision_is_listed_in_the_readme_of_docs() -> None:
    readme = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md")) if path.name != "README.md"]
    assert [page for page in pages if f"({page})" not in readme] == []
