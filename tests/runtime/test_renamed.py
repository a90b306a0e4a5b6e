"""Old names: each is refused in one line that says the new one."""

from __future__ import annotations

import pytest
import torch

import sicompiler
from sicompiler.cli import run


def test_a_parameter() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(sicompiler.BadInput, match=r"^far_memory= is called offload= now$"):
        sicompiler.compile_for_budget(model, gb=1, far_memory="none")  # type: ignore[call-arg]
    with pytest.raises(sicompiler.NotCompiled):
        sicompiler.release(model)


def test_an_exception() -> None:
    with pytest.raises(AttributeError, match="FarMemoryError is called OffloadError now"):
        _ = sicompiler.FarMemoryError


def test_an_environment_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SICOMPILER_FAR_MEMORY", "somewhere")
    said = "the environment variable SICOMPILER_FAR_MEMORY is called SICOMPILER_OFFLOAD_DIR now"
    with pytest.raises(sicompiler.BadInput, match=said):
        sicompiler.compile_for_budget(torch.nn.Linear(2, 2), gb=1)
    assert run(["plan", "svd"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--far-memory=none", "--far-memory"])
def test_an_option_of_the_command_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "svd", argument, "none"]) == 2
    assert capsys.readouterr().err == "sicompiler: --far-memory is called --offload now\n"


def test_a_name_that_never_was_is_no_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sicompiler.nothing
