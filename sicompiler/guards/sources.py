"""The source files behind code that is not installed: between two processes they may be edited.

Within a process, code is told by identity. For another one, a walk has followed what code names; what it can't follow
(a method that is looked up by a name put together, an import inside of a function, the values of an enumeration) is
in the same files. Installed packages are told by their versions.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sicompiler.guards.code import INSTALLED, packages_imported

MOST_FILES, MOST_BYTES = 2000, 2**26  # of one package: more takes too long to look at
_BEGAN = time.time()


class NotDurable(Exception):
    """Something that is known by its identity alone; the message says what."""


def modules_of(found: Any) -> frozenset[str]:
    """The top-level modules that a class or function is of, and those that code imports while it runs."""
    if isinstance(found, types.CodeType):
        return packages_imported(found)
    module = getattr(found, "__module__", None)
    return frozenset({module.partition(".")[0]}) if isinstance(module, str) else frozenset()


def sources_of(modules: Iterable[str]) -> str:
    """A digest of the source files of those modules that are not installed, with all that is in their packages.

    Args:
        modules: names of top-level modules.

    Raises:
        NotDurable: the source of one is not to be had, or is very large.
    """
    return " ".join(f"{name}:{source}" for name in sorted(set(modules)) if (source := _source(name)))


@functools.cache
def _source(name: str) -> str:
    """The digest of a top-level module; empty for an installed one."""
    if name in sys.stdlib_module_names or name == "sicompiler":
        return ""
    if name == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        if file is None:
            raise NotDurable("code that was typed in")
        return _digest([Path(file)])
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "missing"
    places = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])]
    if any(part in INSTALLED for place in places for part in place.parts) or spec.origin in ("built-in", "frozen"):
        return ""
    files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
    return _digest(files)


def _digest(files: list[Path]) -> str:
    try:
        stats = [file.stat() for file in files]
        if len(files) > MOST_FILES or sum(stat.st_size for stat in stats) > MOST_BYTES:
            raise NotDurable(f"{len(files)} source files, which are too many to look at")
        for file, stat in zip(files, stats, strict=True):
            if stat.st_mtime > _BEGAN:
                raise NotDurable(f"{file.name}, which was written since this process began: it may run an older text")
        digest = hashlib.sha256()
        for file in sorted(files):
            digest.update(f"{file.name} ".encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:24]
    except OSError as error:
        raise NotDurable(f"source that can't be read: {error}") from error
