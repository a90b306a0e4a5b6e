"""What code can read: the names in it. Names bound what is followed of classes, of globals and of foreign models."""

from __future__ import annotations

import dis
import functools
import sys
import types
from typing import Any

# Compared by identity, their globals are not followed: nobody edits these from the inside.
_RUNNERS = frozenset({"_pytest", "hypothesis", "pluggy", "pytest", "xdist"})  # pytest puts its own calls into asserts
_HELPERS = frozenset(
    {
        *(
            "anyio",
            "certifi",
            "filelock",
            "fsspec",
            "h11",
            "h2",
            "hf_xet",
            "httpcore",
            "httpx",
            "huggingface_hub",
            "idna",
        ),
        *("packaging", "requests", "safetensors", "sniffio", "tqdm", "urllib3", "yaml"),
    }
)
_COMPUTE_NOTHING = _RUNNERS | _HELPERS
_LIBRARIES = frozenset({"torch", "numpy", "sicompiler", "einops", *sys.stdlib_module_names}) | _COMPUTE_NOTHING
_LONGEST_NAME = 64
# Read without being named: operators, attribute access, iteration.
_UNREAD = frozenset(
    {
        *("__annotations__", "__class_getitem__", "__copy__", "__deepcopy__", "__del__", "__delattr__", "__dict__"),
        *("__dir__", "__doc__", "__firstlineno__", "__format__", "__getstate__", "__init__", "__init_subclass__"),
        *("__module__", "__new__", "__orig_bases__", "__parameters__", "__qualname__", "__reduce__", "__reduce_ex__"),
        *("__repr__", "__setstate__", "__sizeof__", "__slotnames__", "__slots__", "__static_attributes__", "__str__"),
        *("__subclasshook__", "__weakref__", "__abstractmethods__", "__type_params__", "__annotate__"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__annotations_cache__", "_abc_impl"),
    }
)


@functools.lru_cache(maxsize=2**14)
def _names(code: _Code) -> frozenset[str]:
    names = set(code.code.co_names)
    for constant in code.code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_of(constant)
        elif isinstance(constant, str) and len(constant) < _LONGEST_NAME and constant.isidentifier():
            names.add(constant)  # getattr(self, "scale")
    return frozenset(names)


class _Code:
    """A code object, told by identity: equality of code objects compares all their bytes."""

    def __init__(self, code: types.CodeType) -> None:
        self.code = code

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self.code is other.code


def names_of(code: types.CodeType) -> frozenset[str]:
    """Names that code may look up, of globals and of attributes; those of functions defined inside of it too."""
    return _names(_Code(code))


_IMPORT = dis.opmap["IMPORT_NAME"]
_BY_NAME = frozenset({"import_module", "modules", "__import__"})  # of importlib and sys: modules by strings
INSTALLED = ("site-packages", "dist-packages")  # folders of packages that nobody edits


@functools.lru_cache(maxsize=2**14)
def _imports(code: _Code) -> frozenset[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    if _IMPORT in code.code.co_code[::2]:
        before: list[Any] = [None, None]  # what an import takes: its level, and what is taken from the module
        for instruction in dis.get_instructions(code.code):
            if instruction.opcode == dis.EXTENDED_ARG:
                continue
            if instruction.opcode == _IMPORT:
                found.add((before[-2] if isinstance(before[-2], int) else 0, instruction.argval))
            before = [before[-1], instruction.argval]
    for constant in code.code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _imports(_Code(constant))
    return frozenset(found)


def packages_imported(code: types.CodeType) -> frozenset[str]:
    """Top-level modules that code imports while it runs, but for the package that it is of itself."""
    return frozenset(name.partition(".")[0] for level, name in _imports(_Code(code)) if not level)


def imports_of(code: types.CodeType, package: str | None) -> tuple[str, ...]:
    """Names of modules that code imports while it runs, or looks up by a string.

    Nothing for code that is installed: what that imports is its own.

    Args:
        code: of a function.
        package: of the module that it stands in, to which relative imports belong.
    """
    return _imports_of(_Code(code), package if isinstance(package, str) else None)


@functools.lru_cache(maxsize=2**14)
def _imports_of(of: _Code, package: str | None) -> tuple[str, ...]:
    code, names = of.code, set()
    if any(folder in code.co_filename for folder in INSTALLED):
        return ()
    for level, name in _imports(of):
        if not level:
            names.add(name)
        elif package:
            base = package.rsplit(".", level - 1)[0]
            names.add(f"{base}.{name}" if name else base)
    if not _BY_NAME.isdisjoint(code.co_names):
        strings = [name for name in code.co_consts if isinstance(name, str) and len(name) < _LONGEST_NAME]
        names.update(name for name in strings if name.replace(".", "_").isidentifier())
    return tuple(sorted(names))


def is_read_by_syntax(name: str) -> bool:
    """Whether an entry of a class can be read without its name standing in any code."""
    return name.startswith("__") and name.endswith("__") and name not in _UNREAD


def in_library(module: Any) -> bool:
    """Whether a module of that name belongs to torch, NumPy, the standard library, sicompiler, or computes nothing."""
    return isinstance(module, str) and module.split(".", 1)[0] in _LIBRARIES


def computes_nothing(module: Any) -> bool:
    """Whether a module of that name belongs to a library for files, the net or progress bars, or to a test runner."""
    return isinstance(module, str) and module.split(".", 1)[0] in _COMPUTE_NOTHING
