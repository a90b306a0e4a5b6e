"""What a command printed before, for the same question: told at once, before torch is imported.

A plan of a preset, or of a folder of configurations, is a function of the question and of what is installed. Models
that are functions of the user's own are built and looked at, as nobody else can tell whether they are the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from sicompiler.cache.store import Store, default_store
from sicompiler.cache.versions import PACKAGES, digest_of, digest_of_bytes, installed, is_edited
from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import note
from sicompiler.device import Device

MOST_CONFIG_BYTES = 2**24  # of the configurations in a folder
_LOOKS = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONIOENCODING")  # what the looks of a table depend on


class _Tee(io.TextIOBase):
    """A stream that also keeps what goes through it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.kept = stream, io.StringIO()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write and keep."""
        self.kept.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the stream."""
        return self._stream.fileno()


def recalled(command: str, options: ModelOptions, asked: Mapping[str, Any], run: Callable[[], int]) -> int:
    """Print what was printed before for the same question; else run the command, and keep what it prints.

    Args:
        command: its name.
        options: the model.
        asked: the other options.
        run: the command; gives its exit status. Only what ends with 0 is kept.
    """
    store = default_store()
    name = None if store is None else _name(command, options, asked)
    if store is None or name is None:
        return run()
    before = _read(store, name)
    if before is not None:
        sys.stdout.write(before["text"])
        sys.stdout.flush()
        note(f"this was worked out before, in {before['seconds']:.0f} s; SICOMPILER_CACHE=off works it out again")
        return 0
    began, tee = time.perf_counter(), _Tee(sys.stdout)
    with contextlib.redirect_stdout(tee):
        status = run()
    if status == 0:
        answer = {"text": tee.kept.getvalue(), "seconds": time.perf_counter() - began}
        store.write(name, json.dumps(answer).encode())
    return status


def _read(store: Store, name: str) -> dict[str, Any] | None:
    data = store.read(name)
    if data is None:
        return None
    try:
        found = json.loads(data)
        if isinstance(found["text"], str) and isinstance(found["seconds"], float):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    store.drop(name, "is no answer")
    return None


def _name(command: str, options: ModelOptions, asked: Mapping[str, Any]) -> str | None:
    """The entry of a question; None where its answer depends on more than can be told here."""
    if ":" in options.model or ":" in options.planner or options.device is Device.CPU or any(map(is_edited, PACKAGES)):
        return None
    folder = Path(options.model).expanduser()
    configs = _configs(folder) if folder.exists() else ""
    if configs is None:
        return None
    shown = (sys.stdout.isatty(), *_size(), *(os.environ.get(name) for name in _LOOKS))
    asked = {"options": asdict(options), "asked": dict(asked), "shown": shown}
    question = json.dumps(asked, default=str, sort_keys=True)
    return f"answer-{digest_of(installed(), command, question, configs)}"


def _size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns, size.lines
    except (OSError, ValueError):
        return (0, 0)


def _configs(folder: Path) -> str | None:
    """A digest of all configurations in a folder; None where there are too many."""
    files = sorted(folder.rglob("*.json")) if folder.is_dir() else [folder]
    try:
        if sum(path.stat().st_size for path in files) > MOST_CONFIG_BYTES:
            return None
        parts = [f"{path.as_posix()} {digest_of_bytes(path.read_bytes())}" for path in files]
    except OSError:
        return None
    weights = sorted(path.as_posix() for path in folder.rglob("*.safetensors")) if folder.is_dir() else []
    return digest_of(*parts, *weights)
