"""Where the sources lie, for the tests that read them rather than run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The import name of each top-level source folder. Links inside sicompiler/ are not followed, so nothing is seen twice.
PACKAGES = {
    "sicompiler": ROOT / "sicompiler",
    "sicompiler.passes": ROOT / "passes",
    "sicompiler.planners": ROOT / "planners",
}


def files(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Every file below a folder that matches, in order, without following links into other source folders."""
    for path in sorted(folder.rglob(pattern)):
        relative = path.relative_to(folder)
        inside_link = any((folder / parent).is_symlink() for parent in relative.parents)
        if path.is_file() and not inside_link and "__pycache__" not in relative.parts:
            yield path


def library_modules() -> dict[str, Path]:
    """Import name of every module of the library, and its file."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in files(folder, "*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    return modules
