"""A program on disk is never taken for a model that computes something else: everything people do to a live one."""

from __future__ import annotations

import pytest
import torch

from sicompiler.capture import Program, capture, flatten_inputs
from sicompiler.errors import CaptureError
from sicompiler.guards import ModuleGuards
from sicompiler.guards.durable import NotDurable, durable_digest
from tests.guard_mutations import MUTATIONS, Toy, toy
from tests.test_guards_mutations import INPUTS, NUMBERS


def key(model: torch.nn.Module) -> str:
    """What a program of the model is kept under; empty where none is."""
    try:
        return durable_digest(ModuleGuards().facts_of(model))
    except NotDurable:
        return ""


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(toy(), (INPUTS[0],))


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
    name: str, number: float, program: Program
) -> None:
    plain, model = key(toy()), toy()
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
