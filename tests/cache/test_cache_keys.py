"""A program on disk is never taken for a model that computes something else: everything people do to a live one."""

from __future__ import annotations

import array
import contextlib
import importlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from sicompiler.cache.keys import call_digest
from sicompiler.capture import Program, capture, flatten_inputs
from sicompiler.errors import CaptureError
from sicompiler.guards import ModuleGuards, sources
from tests.guard_mutations import MUTATIONS, Toy, toy
from tests.guards.test_guards_mutations import INPUTS, NUMBERS
from tests.program_keys import key


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(toy(), (INPUTS[0],))


@pytest.fixture(scope="module")
def plain() -> str:
    """The key of a model to which nothing was done."""
    return key(toy())


def gives(program: Program, model: Toy, x: torch.Tensor) -> torch.Tensor | None:
    """What a program computes with the weights of a model; None where it can't be run with them."""
    with torch.no_grad():
        try:
            result: torch.Tensor = program.graph_module(*program.arguments(model, flatten_inputs((x,), {})[0]))[0]
        except (KeyError, RuntimeError):
            return None
    return result


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", list(MUTATIONS))
def test_a_mutated_model_has_another_key_where_the_program_would_be_wrong(
    name: str, number: float, program: Program, plain: str
) -> None:
    model = toy()
    undo = MUTATIONS[name].apply(model, number)
    try:
        capture(model, (INPUTS[0],))
        with torch.no_grad():
            wanted = [model.forward(x) for x in INPUTS]  # hooks of the model itself fire around what is compiled
        found = [gives(program, model, x) for x in INPUTS]
        alike = all(y is not None and torch.equal(x, y) for x, y in zip(wanted, found, strict=True))
        assert alike or key(model) != plain
    except CaptureError:
        pass  # it is never kept
    finally:
        if undo is not None:
            undo()


def test_models_alike_have_one_key() -> None:
    assert key(toy()) == key(toy()) != ""


class Holder(torch.nn.Module):
    """Reads something that it holds."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        return x * float(next(iter(self.held)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (array.array("d", [2.0]), array.array("d", [3.0])),
        (itertools.cycle([2.0]), itertools.cycle([3.0])),
        ({Fraction(1, 2)}, {Fraction(1, 3)}),
        (memoryview(b"2"), memoryview(b"3")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_extensions_hold_is_told_apart_or_not_kept(one: Any, other: Any) -> None:
    first, second = key(Holder(one)), key(Holder(other))
    assert first != second or first == second == ""


def test_a_context_manager_of_a_library_that_decorates_code_is_told_by_what_it_was_given() -> None:
    def decorated(*, enabled: bool) -> torch.nn.Module:
        model = Holder([2.0])
        model.forward = torch.backends.mkldnn.flags(enabled=enabled)(model.forward)  # type: ignore[method-assign]
        return model

    assert key(decorated(enabled=True)) == key(decorated(enabled=True)) != ""
    assert key(decorated(enabled=True)) != key(decorated(enabled=False))


def test_a_context_manager_of_the_user_is_told_by_its_code() -> None:
    def doubled(gain: float) -> Any:
        @contextlib.contextmanager
        def context() -> Iterator[float]:
            yield gain

        return context()

    assert key(Holder([doubled(2.0)])) == key(Holder([doubled(2.0)])) != ""
    assert key(Holder([doubled(2.0)])) != key(Holder([doubled(3.0)]))


def test_random_numbers_that_no_call_draws_are_no_part_of_the_key() -> None:
    assert key(Holder([2.0, random.Random(0)])) == key(Holder([2.0, random.Random(1)])) != ""


def test_classes_of_one_name_are_not_kept() -> None:
    def make(gain: float) -> torch.nn.Module:
        class Gain(torch.nn.Module):
            """Multiplies."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                """Float in, float out."""
                return x * gain

        return Gain()

    two, three = make(2.0), make(3.0)
    assert key(torch.nn.Sequential(two, three)) == ""


EDITED = """
import enum
import torch

class Kind(enum.Enum):
    LOUD = {value}

class Model(torch.nn.Module):
    def quiet(self):
        return {value}

    def forward(self, x):
        from {name}_helper import gain
        return x * gain * Kind.LOUD.value * getattr(self, "qui" + "et")()
"""


KEYS = """
import os, sys
from tests.program_keys import key

for folder in sys.argv[1:]:
    os.rename(folder, "models")
    child = os.fork()  # torch is imported once
    if not child:
        sys.path.insert(0, "models")
        import models_edited
        print(key(models_edited.Model()), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    os.rename("models", folder)
"""


def test_source_that_was_edited_between_two_processes_is_another_key(tmp_path: Path) -> None:
    """Methods looked up by a name put together, values of enumerations, what is imported inside of a function."""
    for folder, value, gain in (("plain", 2.0, 1.0), ("values", 3.0, 1.0), ("helper", 2.0, 5.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "models_edited.py").write_text(EDITED.format(value=value, name="models_edited"))
        (tmp_path / folder / "models_edited_helper.py").write_text(f"gain = {gain}\n")

    def keys_of(*folders: str) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", KEYS, *folders]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    first, values, helper = keys_of("plain", "values", "helper")
    assert keys_of("plain") == [first]
    assert len({first, values, helper}) == 3


def test_source_that_is_newer_than_the_process_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs may be an older text, imported before the edit."""
    file = tmp_path / "edited_while_it_runs.py"
    file.write_text(EDITED.format(value=2.0, name=file.stem))
    (tmp_path / f"{file.stem}_helper.py").write_text("gain = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    os.utime(file, (0, time.time() - 10**6))
    os.utime(tmp_path / f"{file.stem}_helper.py", (0, time.time() - 10**6))
    model = importlib.import_module(file.stem).Model()
    assert key(model) != ""
    sources._source.cache_clear()
    file.write_text(EDITED.format(value=3.0, name=file.stem))
    assert key(model) == ""


def test_settings_of_torch_and_devices_of_weights_are_part_of_a_call() -> None:
    facts = ModuleGuards().facts_of(toy())
    plain = call_digest(facts, "cpu", "forward", (INPUTS[0],), {})
    assert call_digest(facts, "cpu", "forward", (INPUTS[0],), {}) == plain
    assert call_digest(facts, "cuda:0", "forward", (INPUTS[0],), {}) != plain
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert call_digest(facts, "cpu", "forward", (INPUTS[0],), {}) != plain
    finally:
        torch.set_float32_matmul_precision(before)
