"""Rows of a benchmark that may be interrupted: each is on disk as soon as it is there, and is not run again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A JSON file of rows by name.

    Args:
        path: of the file; what it holds of the same machine is kept.
        machine: what the rows hold for; of another one they are dropped.
        most_seconds: no row is begun after that.
    """

    def __init__(self, path: Path, machine: Mapping[str, Any], most_seconds: float) -> None:
        self.path, self.machine = path, dict(machine)
        self.rows: dict[str, Any] = {}
        self._ends = time.monotonic() + most_seconds
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["machine"] == self.machine:
                self.rows = before["rows"]

    def row(self, name: str, make: Callable[[], Any]) -> Any:
        """A row: as it was found before, or made now and written.

        What fails is a row too, with its error, and is tried again the next time.

        Args:
            name: of the row.
            make: gives what JSON holds.

        Returns:
            The row; None where there is no time left for it.
        """
        if name in self.rows and "error" not in self.rows[name]:
            return self.rows[name]
        if time.monotonic() > self._ends:
            return None
        began = time.perf_counter()
        try:
            row = dict(make())
        except Exception as error:  # a row that fails must not take the others with it: a GPU is borrowed for minutes
            row = {"error": f"{type(error).__name__}: {error}"}
        self.rows[name] = {**row, "row_seconds": round(time.perf_counter() - began, 2)}
        self._write()
        return self.rows[name]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"machine": self.machine, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)
