"""The cache on disk: another process captures and searches nothing, and nothing is used that is not the same."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.cache import keys
from sicompiler.errors import OverBudget
from sicompiler.guards import ModuleGuards
from sicompiler.guards.durable import durable_digest
from sicompiler.guards.sources import NotDurable
from tests.cache_parts import Block, X, compiled, folder, work

__all__ = ["folder", "work"]  # fixtures


def test_a_second_model_alike_captures_and_searches_nothing(folder: Path, work: list[str]) -> None:
    first = Block()
    result = compiled(first)
    assert set(work) == {"capture", "search"}
    work.clear()
    second = Block()
    assert torch.equal(compiled(second), result)
    assert work == []
    plan, again = sicompiler.report(first).plan, sicompiler.report(second).plan
    assert plan is not None
    assert again is not None
    assert plan == again
    assert plan.regions
    assert set(again.timings) == {"cache"}


def test_another_budget_of_a_known_program_is_searched_only(folder: Path, work: list[str]) -> None:
    compiled(Block())
    work.clear()
    compiled(Block(), "640KiB")
    assert set(work) == {"search"}


def test_a_budget_that_was_refused_is_refused_again(folder: Path, work: list[str]) -> None:
    with pytest.raises(OverBudget) as first:
        compiled(Block(), "100KiB", offload="none")
    work.clear()
    with pytest.raises(OverBudget) as second:
        compiled(Block(), "100KiB", offload="none")
    assert work == []
    assert str(first.value) == str(second.value)
    assert first.value.floor_bytes == second.value.floor_bytes


def _scale(model: Block) -> None:
    model.gain = 3.0


def _constant(model: Block) -> None:
    model.scale = torch.full((1,), 0.25)


def _hook(model: Block) -> None:
    model.norm.register_forward_hook(lambda module, args, output: output * 2)


def _code(model: Block) -> None:
    vars(model.second)["forward"] = lambda x: x[:, :4] * 3


def _width(model: Block) -> None:
    model.double()


@pytest.mark.parametrize("change", [_scale, _constant, _hook, _code, _width])
def test_a_model_that_differs_is_captured(change: Callable[[Block], None], folder: Path, work: list[str]) -> None:
    compiled(Block())
    model, twin = Block(), Block()
    change(model)
    change(twin)
    work.clear()
    x = X.to(model.first.weight.dtype)
    with torch.no_grad():
        wanted = twin(x)
    found = compiled(model, "2.4MiB", x)
    assert work.count("capture") == 1
    assert float((found - wanted).abs().max()) <= 1e-5
    work.clear()
    other = Block()
    change(other)
    assert torch.equal(compiled(other, "2.4MiB", x), found)
    assert work == [], "what it is now is known as well"


def test_a_constant_is_that_of_the_live_model(folder: Path) -> None:
    compiled(Block())
    model = Block()
    compiled(model)
    program = sicompiler.report(model).programs[0]
    assert any(constant is model.scale for constant in program.constants.values())


def test_another_version_is_another_entry(folder: Path, work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(Block())
    work.clear()
    for module in (keys, sys.modules["sicompiler.cache.known"]):
        monkeypatch.setattr(module, "versions", lambda: "of tomorrow")
    compiled(Block())
    assert set(work) == {"capture", "search"}


def test_without_a_cache_nothing_is_written(folder: Path) -> None:
    compiled(Block(), cache=False)
    assert not folder.exists()


def test_damaged_entries_are_written_anew(folder: Path, work: list[str], caplog: pytest.LogCaptureFixture) -> None:
    result = compiled(Block())
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    work.clear()
    with caplog.at_level(logging.WARNING, "sicompiler"):
        assert torch.equal(compiled(Block()), result)
    assert set(work) == {"capture", "search"}
    assert sum("cache" in record.getMessage() for record in caplog.records) == 1
    work.clear()
    compiled(Block())
    assert work == []


class Masked(nn.Module):
    """Decides by values: a branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        y: torch.Tensor = self.inner(x)
        return y * 2 if torch.all(x == 0) else y + x


def test_programs_that_values_decide_are_told_apart(folder: Path, work: list[str]) -> None:
    inputs = [torch.randn(16, 64), torch.zeros(16, 64)]
    wanted = [Masked()(x).detach() for x in inputs]
    for expected in (2, 0):
        work.clear()
        for x, right in zip(inputs, wanted, strict=True):
            assert torch.equal(compiled(Masked(), "1MiB", x), right)
        assert work.count("capture") == expected


SCRIPT = """
    from sicompiler.compiler import prepare, searches
    from tests.cache_parts import Block, compiled

    def refuse(*args, **kwargs):
        raise AssertionError("it was worked out again")

    prepare.capture = searches.make_search = refuse
    print(repr(compiled(Block()).double().sum().item()))
"""


def test_a_second_process_captures_and_searches_nothing(folder: Path) -> None:
    """Strings hash differently there, and nothing lies where it did."""
    first = compiled(Block()).double().sum().item()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={**os.environ, "PYTHONHASHSEED": "2", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{first!r}\n"


def test_what_is_known_by_identity_alone_is_not_kept() -> None:
    class Model(nn.Module):
        """Has an attribute whose name tells where an object lies."""

        def __init__(self) -> None:
            super().__init__()
            self.table = {object(): 1.0}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Float in, float out."""
            return x * next(iter(self.table.values()))

    with pytest.raises(NotDurable, match="looked into"):
        durable_digest(ModuleGuards().facts_of(Model()))


def test_what_is_not_looked_into_is_told_by_what_it_prints_or_not_at_all() -> None:
    """A pattern has no attributes that a walk follows; other objects of extensions print where they lie."""

    class Model(nn.Module):
        """Chooses by a pattern."""

        def __init__(self, pattern: str) -> None:
            super().__init__()
            self.pattern = re.compile(pattern)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Float in, float out."""
            return x * 2 if self.pattern.match("up") else x

    up, again, down = (durable_digest(ModuleGuards().facts_of(Model(name))) for name in ("up", "up", "down"))
    assert up == again != down


def test_the_command_line_tells_and_clears(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sicompiler.cli import run

    compiled(Block())
    assert run(["cache", "info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(folder)
    assert found["entries"] == len(list(folder.iterdir())) > 0
    assert run(["cache", "clear"]) == 0
    assert not list(folder.iterdir())
    assert "removed" in capsys.readouterr().out


def test_a_program_with_the_name_of_a_function_of_python_is_read_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The argument of `nn.Sequential` is called `input`, a name that fx gives no node of its own accord."""
    for _ in range(2):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        sicompiler.compile_for_budget(model, 1, example_inputs=((torch.randn(2, 8),), {}))
    assert "is no program" not in caplog.text
