"""The cache on disk: another process captures and searches nothing, and nothing is used that is not the same."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler import prepare as prepare_module
from sicompiler.cache import keys
from sicompiler.cache.graphs import Broken
from sicompiler.cache.programs import pack_program, unpack_program
from sicompiler.cache.results import unpack_spec
from sicompiler.capture import Program, capture, flatten_inputs, weights_bytes
from sicompiler.compiler import make_planner
from sicompiler.errors import OverBudget
from sicompiler.guards import ModuleGuards
from sicompiler.guards.durable import durable_digest
from sicompiler.guards.sources import NotDurable
from sicompiler.search import searches
from sicompiler.testing.models import random_module


class Block(nn.Module):
    """Convolutions and a norm: loops with halos, statistics and whole values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.scale = torch.full((1,), 0.5)  # a constant
        self.gain = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        hidden: torch.Tensor = torch.nn.functional.silu(self.norm(self.first(x)))
        result: torch.Tensor = x + self.scale * self.gain * self.second(hidden)
        return result


X = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(1))
BUDGET = "600KiB"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("SICOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done in full since: "capture", "search"."""
    done: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            done.append(what)
            return function(*args, **kwargs)

        return run

    for where, name, what in ((prepare_module, "capture", "capture"), (searches, "make_search", "search")):
        monkeypatch.setattr(where, name, noted(what, getattr(where, name)))
    return done


def compiled(model: nn.Module, budget: str = BUDGET, x: torch.Tensor = X, **options: Any) -> torch.Tensor:
    """What a model gives within a budget."""
    sicompiler.compile_for_budget(model, budget, **options)
    with torch.no_grad():
        result: torch.Tensor = model(x)
    return result


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
        compiled(Block(), "100KiB", far_memory="none")
    work.clear()
    with pytest.raises(OverBudget) as second:
        compiled(Block(), "100KiB", far_memory="none")
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


class Pair:
    """What some models return: an object of a class of their own."""

    def __init__(self, mean: torch.Tensor, parts: list[Any]) -> None:
        self.mean, self.parts, self.kind = mean, parts, Pair


class Distribution(nn.Module):
    """Returns an object with tensors in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Pair:
        """Float in, two floats in an object out."""
        return Pair(self.inner(x), [x * 2, {"name": "third"}])


def test_results_of_own_classes_are_made_again(folder: Path, work: list[str]) -> None:
    x = torch.randn(3, 4)
    for _ in range(2):
        torch.manual_seed(0)
        model = Distribution()
        wanted = model(x)
        found: Any = compiled(model, "1MiB", x)
        assert type(found) is Pair
        assert torch.equal(found.mean, wanted.mean)
        assert torch.equal(found.parts[0], wanted.parts[0])
        assert found.parts[1] == {"name": "third"}
        assert found.kind is Pair
    assert work.count("capture") == 1


@pytest.mark.parametrize("seed", range(12))
def test_a_program_survives_being_packed(seed: int) -> None:
    """Captured and rewritten, with loops, halos and values in far memory: the same text, and the same numbers."""
    module, args, kwargs = random_module(seed)
    program = capture(module, args, kwargs)
    planner = make_planner(program, model="m", weights_bytes=weights_bytes(module), dtype="", device_type="cpu")
    plan = planner.plan(planner.floor("auto")[0], far_memory="auto")
    inputs = flatten_inputs(args, kwargs)[0]
    for made in (program, planner.rewrite(plan)):
        packed = pack_program(made)
        again = unpack_program(packed)
        assert pack_program(again) == packed
        assert again.graph_module.code == made.graph_module.code
        for one, other in zip(_run(made, module, inputs), _run(again, module, inputs), strict=True):
            assert torch.equal(one, other)


def _run(program: Program, module: nn.Module, inputs: list[Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        results = program.graph_module(*program.arguments(module, inputs))
    return [result for result in results if result is not None]


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"{}", b"x" * 100])
def test_bytes_that_are_no_program_are_broken(data: bytes) -> None:
    with pytest.raises(Broken):
        unpack_program(data)


def test_nothing_of_a_file_is_looked_up_but_operators() -> None:
    """A file names functions of graphs; none that does something else can be named."""
    from sicompiler.cache.graphs import _target

    for name in ("os.system", "builtins.exec", "torch.ops.load_library", "operator.setitem", "sicompiler.api.release"):
        with pytest.raises(Broken):
            _target(name)


class Odd:
    """A result with parts that have no form in a file."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.table, self.size = x, defaultdict(int), x.shape


class Odds(nn.Module):
    """Returns an object with a container of another class in it."""

    def forward(self, x: torch.Tensor) -> Odd:
        """Float in, an object out."""
        return Odd(x * 2)


class Imaginary(nn.Module):
    """Holds a view that negates what lies in its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.tensor([1 + 1j, 2 + 2j, 3 + 3j]).conj().imag

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        return x + self.shift


def test_what_has_no_form_in_a_file_is_captured_again(folder: Path, work: list[str]) -> None:
    x = torch.ones(3)
    for _ in range(2):
        found: Any = compiled(Odds(), "1MiB", x)
        assert type(found.table) is defaultdict
        assert type(found.size) is torch.Size
        assert torch.equal(compiled(Imaginary(), "1MiB", x), Imaginary()(x))
    assert work.count("capture") == 4


class Unprintable(threading.Thread):
    """Raises when it is printed."""

    def __init__(self) -> None:
        """Not that of a thread."""


def test_objects_that_raise_when_looked_at_are_no_reason_to_fail(folder: Path) -> None:
    model = Block()
    vars(model)["watcher"] = Unprintable()
    assert torch.equal(compiled(model), compiled(Block(), cache=False))


class Hit:
    """Must not be called by anything that is read."""

    calls = 0

    def __init__(self, *args: Any) -> None:
        Hit.calls += 1


@pytest.mark.parametrize(
    "state",
    [
        {"__reduce_ex__": ["class", f"{__name__}:Hit"]},
        {"__getstate__": ["class", f"{__name__}:Hit"]},
    ],
)
def test_nothing_in_a_file_is_called(state: dict[str, Any]) -> None:
    spec = ["opened", [0, ["object", f"{__name__}:Hit", state]], []]
    with pytest.raises(Broken):
        unpack_spec(spec)
    assert Hit.calls == 0


def test_objects_of_the_standard_library_are_not_made_from_a_file(tmp_path: Path) -> None:
    """A file closer would delete a file when it goes."""
    for name in ("tempfile:_TemporaryFileCloser", "argparse:Namespace", "threading:Thread"):
        with pytest.raises(Broken):
            unpack_spec(["opened", [0, ["object", name, {}]], []])


SCRIPT = """
    import sys, torch
    from torch import nn
    import sicompiler
    from sicompiler import prepare
    from sicompiler.search import searches
    from tests.test_cache import Block, X, BUDGET, compiled

    def refuse(*args, **kwargs):
        raise AssertionError("it was worked out again")

    if sys.argv[1] == "second":
        prepare.capture = searches.make_search = refuse
    print(repr(compiled(Block()).double().sum().item()))
"""


def test_a_second_process_captures_and_searches_nothing(folder: Path) -> None:
    """Strings hash differently there, and nothing lies where it did."""
    outputs = []
    for seed, name in (("1", "first"), ("2", "second")):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), name],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


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
