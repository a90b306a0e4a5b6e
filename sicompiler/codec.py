"""Frozen dataclasses read from JSON: every value is checked against its type, and an error names the field.

The checking is pydantic's, of the dataclasses as they are. It is imported by whoever reads the first file: a tenth of a
second, which `import sicompiler` does not take.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sicompiler.errors import StalePlan

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")

# Which of our files a JSON object is, by keys that no other has; the first row that fits.
_KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("a rehash plan (sicompiler rehash calibrate)", frozenset({"pipeline", "steps", "cut"})),
    ("a file of lessons (sicompiler rehash calibrate --save-lessons)", frozenset({"setting", "cuts", "runs"})),
    ("a plan (sicompiler plan --output)", frozenset({"fingerprint", "regions"})),
    ("the summary that sicompiler plan --json prints", frozenset({"unsliced_peak_bytes", "predicted_seconds"})),
    ("the summary of a pipeline that sicompiler plan --json prints", frozenset({"phases", "budget_bytes"})),
    ("a configuration of diffusers", frozenset({"_class_name"})),
)


class Malformed(ValueError):
    """A JSON value is not what a field takes; the message begins with the path of the field."""


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Malformed: the text is no JSON object; says what it is instead, and where it breaks.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        what = "it is empty" if not text.strip() else f"it is no JSON: {error}"
        raise Malformed(what) from error
    except RecursionError as error:
        raise Malformed("it is nested too deep") from error
    if not isinstance(value, dict):
        raise Malformed(f"it holds a {type(value).__name__}, not an object")
    return value


def kind_of(value: Mapping[str, Any]) -> str | None:
    """Which of the files that sicompiler reads or writes an object is; None for others."""
    return next((name for name, keys in _KINDS if keys <= value.keys()), None)


def refuse_other(value: Any, wanted: str) -> None:
    """Refuse a JSON value that is another of our files, by its name.

    Args:
        value: what the JSON holds.
        wanted: what is expected, as it is called: "a plan", "a rehash plan", "a file of lessons".

    Raises:
        StalePlan: it is something else.
    """
    kind = kind_of(value) if isinstance(value, dict) else None
    if kind is not None and not kind.startswith(f"{wanted} ("):
        raise StalePlan(f"this is not {wanted}: it is {kind}")


def decode(kind: type[T], data: Any) -> T:
    """Build a dataclass from JSON data.

    Args:
        kind: a dataclass of plain values, of tuples and mappings, and of other such dataclasses.
        data: what JSON holds.

    Raises:
        Malformed: the data do not fit the type.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, kind)).validate_json(json.dumps(data))
    except ValidationError as error:
        raise Malformed(_told(error.errors(include_url=False)[0])) from error
    return value


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a dataclass, with what its docstring says of each field."""
    schema = _adapter(kind).json_schema()
    definitions = schema.pop("$defs")
    parts = {part.__name__: part for part in _dataclasses_in(kind)}
    for name, part in definitions.items():
        if name in parts:
            _describe(part, parts[name])
    top = definitions.pop(kind.__name__)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions}


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # Dataclasses inside take the configuration over; the outermost one only does where it stands inside of something.
    configuration = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return TypeAdapter(kind | None, config=configuration)


_WANTED = {
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "a text",
    "tuple_type": "a list",
}


def _told(error: ErrorDetails) -> str:
    """One error of pydantic in one line that begins with the path of the field."""
    path = _path(error["loc"])
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{path} is no field of it"
    shown = repr(error["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    wanted = _WANTED.get(error["type"])
    if wanted is None:
        return f"{path} is wrong: {error['msg']}, got {shown}"
    return f"{path} must be {wanted}, got {shown}"


def _path(parts: Iterable[int | str]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(path)}{part}"
    return path or "it"


def _dataclasses_in(kind: Any, found: tuple[type, ...] = ()) -> tuple[type, ...]:
    """A dataclass and all that its fields are made of."""
    if kind in found:
        return found
    if not dataclasses.is_dataclass(kind):
        for part in getattr(kind, "__args__", ()):
            found = _dataclasses_in(part, found)
        return found
    assert isinstance(kind, type)
    found = (*found, kind)
    for hint in inspect.get_annotations(kind, eval_str=True).values():
        found = _dataclasses_in(hint, found)
    return found


_ATTRIBUTE = re.compile(r"^    (\w[\w, ]*): (.+(?:\n     .*)*)", re.MULTILINE)


def _describe(schema: dict[str, Any], kind: type) -> None:
    """Take the lines of a docstring over: the sentence of the class, and what it says of each attribute."""
    text = inspect.getdoc(kind) or ""
    schema["description"] = text.partition("\n\n")[0]
    for field in schema["properties"].values():
        field.pop("title", None)  # the name once more
    for names, words in _ATTRIBUTE.findall(text.partition("Attributes:\n")[2]):
        for name in names.split(", "):
            if name in schema["properties"]:
                schema["properties"][name]["description"] = " ".join(words.split())
