"""The JSON schemas in docs/schemas are those of what is read: `pytest --update-golden` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sicompiler.codec import json_schema
from sicompiler.plan import plan_schema
from sicompiler.rehash.book import WrittenLessons
from sicompiler.rehash.plan import RehashPlan
from tests.source_tree import ROOT

FOLDER = ROOT / "docs" / "schemas"

SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "plan": plan_schema,
    "rehash-plan": lambda: json_schema(RehashPlan),
    "lessons": lambda: json_schema(WrittenLessons),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_in_the_documentation_is_current(name: str, request: pytest.FixtureRequest) -> None:
    text = json.dumps(SCHEMAS[name](), indent=1) + "\n"
    file = FOLDER / f"{name}.schema.json"
    if request.config.getoption("--update-golden"):
        file.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == text, "pytest --update-golden writes it anew"


def test_no_other_schema_lies_there() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.schema.json" for name in SCHEMAS}


def test_every_field_of_a_plan_says_what_it_is() -> None:
    fields = plan_schema()["properties"]
    bare = [name for name, field in fields.items() if "description" not in field and name != "version"]
    assert not bare, f"no line in the docstring of Plan: {bare}"
