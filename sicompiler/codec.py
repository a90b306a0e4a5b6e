"""Frozen dataclasses read from JSON: every value is checked against its type, and an error names the field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sicompiler.errors import StalePlan

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


def decode(kind: type[T], data: Any, path: str = "") -> T:
    """Build a value of a type from JSON data.

    Args:
        kind: int, float, str, bool, a dataclass, `X | None`, a tuple or a mapping by name of these.
        data: what JSON holds.
        path: of the field, for errors.

    Raises:
        Malformed: the data do not fit the type.
    """
    value: T = _decode(kind, data, path)
    return value


def _decode(kind: Any, data: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, path)
    origin = get_origin(kind)
    if origin is types.UnionType:
        inner = next(part for part in get_args(kind) if part is not type(None))
        return None if data is None else _decode(inner, data, path)
    if origin is tuple:
        return _tuple(get_args(kind), data, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise _wrong(path, "an object", data)
        return {name: _decode(get_args(kind)[1], value, f"{path}.{name}") for name, value in data.items()}
    return _scalar(kind, data, path)


def _scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if not math.isfinite(data):
            raise _wrong(path, "a finite number", data)
        return data
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise _wrong(path, names[kind], data)
    return data


def _tuple(parts: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _wrong(path, "a list", data)
    if parts[1:] == (Ellipsis,):
        parts = (parts[0],) * len(data)
    if len(parts) != len(data):
        raise _wrong(path, f"a list of {len(parts)}", data)
    return tuple(_decode(part, row, f"{path}[{i}]") for i, (part, row) in enumerate(zip(parts, data, strict=True)))


def _dataclass(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(path, "an object", data)
    hints, known = get_type_hints(kind), {field.name for field in dataclasses.fields(kind) if field.init}
    before = f"{path}." if path else ""
    missing, unknown = sorted(known - data.keys()), sorted(data.keys() - known)
    if missing or unknown:
        what = f"{before}{missing[0]} is missing" if missing else f"{before}{unknown[0]} is no field of it"
        raise Malformed(what)
    return kind(**{name: _decode(hints[name], value, f"{before}{name}") for name, value in data.items()})


def _wrong(path: str, wanted: str, data: Any) -> Malformed:
    shown = repr(data)
    return Malformed(f"{path or 'it'} must be {wanted}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")
