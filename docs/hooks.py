"""Hooks of mkdocs: pages may link to files of the repository outside of docs/, which then come along in the site."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")  # without addresses elsewhere and anchors of the page


def _target(page: Path, link: str) -> Path | None:
    """The file that a link leads to: of a folder, the first lesson in it. None where there is none."""
    target = (page.parent / link).resolve()
    if target.is_dir():
        return min(target.glob("*.py"), default=None)
    return target if target.exists() else None


def _place(path: Path) -> Path:
    """Where a file of the repository lies in the site, of which docs/ is the root."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT)


def _linked(page: Path) -> Iterator[Path]:
    """Files outside of docs/ that a page leads to, and those that these lead to."""
    for link, _ in _LINK.findall(page.read_text(encoding="utf-8")):
        target = _target(page, link)
        if target is not None and not target.is_relative_to(DOCS):
            yield target


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of docs/: examples, results of benchmarks, sources."""
    waiting = [Path(str(file.abs_src_path)) for file in files if file.is_documentation_page()]
    while waiting:
        for target in _linked(waiting.pop()):
            name = _place(target).as_posix()
            if files.get_file_from_path(name) is None:
                files.append(
                    File.generated(config, name, abs_src_path=str(target), inclusion=InclusionLevel.NOT_IN_NAV)
                )
                waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where files lie in the site; what leads nowhere stays, and mkdocs says so."""
    path = Path(page.file.abs_src_path)

    def replaced(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        if target is None:
            return match[0]
        return f"]({Path(os.path.relpath(_place(target), _place(path).parent)).as_posix()}{match[2] or ''})"

    return _LINK.sub(replaced, markdown)
