"""The layering of the library: a module imports strictly lower layers, or its own package."""

from __future__ import annotations

import ast

import pytest

from tests.source_tree import library_modules

pytestmark = pytest.mark.pure


# A new folder, or a module outside of all, gets a line here. Within a layer nothing imports a neighbour: passes,
# planners, runtime and reports meet in Plan only. docs/README.md shows the same table with what each layer is for.
LAYERS = {
    "_version": 0, "collector": 0, "errors": 0, "turns": 0,
    "cards": 1, "device": 1,
    "codec": 2, "demo": 2, "guards": 2, "ops": 2, "renamed": 2, "units": 2,
    "capture": 3, "machines": 3,
    "facts": 4,
    "axes": 5,
    "operators": 6, "regions": 6,
    "cost": 7, "plan": 7,
    "cache": 8,
    "passes": 9, "planners": 9, "runtime": 9,
    "rehash": 10, "replay": 10, "zoo": 10,
    "reports": 11,
    "compiler": 12,
    "compiled_module": 13,
    "calibration": 14, "pipelines": 14, "scaling": 14,
    "api": 15,
    "cli": 16, "testing": 16,
}  # fmt: skip

MODULES = library_modules()


def _group(module: str) -> str:
    """`sicompiler.axes.registry` -> `axes`; the package itself, whose names are lazy, is the public face: `api`."""
    return module.split(".")[1] if "." in module else "api"


def _imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and module of every import of ours, those inside functions and under TYPE_CHECKING included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            submodules = [f"sicompiler.{alias.name}" for alias in node.names]
            if base == "sicompiler":
                found += [(node.lineno, name if _group(name) in LAYERS else base) for name in submodules]
            else:
                found.append((node.lineno, base))
    return [(line, name) for line, name in found if name.split(".")[0] == "sicompiler" or name.startswith(".")]


def test_every_module_has_a_layer() -> None:
    unknown = sorted(m for m in MODULES if m != "sicompiler" and _group(m) not in LAYERS)
    assert not unknown, f"no layer for {', '.join(unknown)}: add a line to LAYERS in {__file__}"


def _wrong_imports(module: str) -> list[str]:
    group = _group(module)
    wrong = []
    for line, name in _imports(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        where = f"{MODULES[module].name}:{line}"
        if name.startswith("."):
            wrong.append(f"{where} imports {name}: imports are absolute here")
        elif _group(name) not in LAYERS:
            wrong.append(f"{where} imports {name}, which has no layer: add a line to LAYERS")
        elif _group(name) != group and LAYERS[_group(name)] >= LAYERS.get(group, 0):
            wrong.append(
                f"{where}: {group} (layer {LAYERS.get(group)}) imports {name} (layer {LAYERS[_group(name)]});"
                " only strictly lower layers may be imported"
            )
    return wrong


def test_imports_go_down() -> None:
    wrong = [line for module in sorted(MODULES.keys() - {"sicompiler"}) for line in _wrong_imports(module)]
    assert not wrong, "\n".join(wrong)
