"""Running the command line within the process of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sicompiler.cli
from tests.source_tree import ROOT


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *first: str) -> Cli:
    """A function that runs `sicompiler` in the root of the repository: `first`, then the arguments it is given."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        status = sicompiler.cli.run([*first, *map(str, arguments)])
        return Result(status, *capsys.readouterr())

    return call
