"""What is installed, told without importing any of it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path

# They decide what a preset is, and what becomes of it.
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "einops", "peft")
_LONG = 40  # digits of a digest: it names a file


def digest_of(*parts: str) -> str:
    """A digest of texts."""
    return digest_of_bytes("\n".join(parts).encode("utf-8", "surrogatepass"))


def digest_of_bytes(data: bytes) -> str:
    """A digest of bytes."""
    return hashlib.sha256(data).hexdigest()[:_LONG]


def is_edited(package: str) -> bool:
    """Whether a package is installed from a folder that somebody works in, so that its version says little."""
    try:
        origin = importlib.metadata.distribution(package).read_text("direct_url.json")
        return bool(origin and json.loads(origin).get("dir_info", {}).get("editable"))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


@functools.cache
def installed() -> str:
    """A digest of Python, of all packages that are installed, and of all our code."""
    found = sorted({_named(distribution) for distribution in importlib.metadata.distributions()})
    return digest_of(platform.python_version(), *found, _sources())


def _named(distribution: importlib.metadata.Distribution) -> str:
    """Name and version of a package: two lines of a text that would else be parsed twice."""
    header = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    found = [re.search(rf"^{field}: *(.+?)\r?$", header, re.MULTILINE) for field in ("Name", "Version")]
    if all(found):
        return " ".join(match[1] for match in found if match)
    return f"{distribution.name} {distribution.version}"


def _sources() -> str:
    """A digest of the source files of sicompiler: while it is worked on, its version says nothing."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    folders = [root, root / "passes", root / "planners"]  # the last two may be links, which a walk does not follow
    files = {path for folder in folders for path in folder.rglob("*.py")}
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
