"""What a file of the cache may hold: programs and results as data, and nothing that is executed."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sicompiler.cache.graphs import Broken
from sicompiler.cache.programs import pack_program, unpack_program
from sicompiler.cache.results import unpack_spec
from sicompiler.capture import Program, capture, flatten_inputs, weights_bytes
from sicompiler.compiler.planner import make_planner
from sicompiler.testing.models import random_module
from tests.cache_parts import Block, compiled, folder, work

__all__ = ["folder", "work"]  # fixtures


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
    """Captured and rewritten, with loops, halos and offloaded values: the same text, and the same numbers."""
    module, args, kwargs = random_module(seed)
    program = capture(module, args, kwargs)
    planner = make_planner(program, model="m", weights_bytes=weights_bytes(module), dtype="", device_type="cpu")
    plan = planner.plan(planner.floor("auto")[0], offload="auto")
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
        self.x, self.size = x, x.shape
        self.table: defaultdict[str, int] = defaultdict(int)


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
