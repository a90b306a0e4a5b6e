"""Composite operators are kept whole as torch keeps them, and are afterwards what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._subclasses.fake_impls as fake_impls
import torch.export.exported_program as exported_program

from sicompiler.capture.composites import composites_kept

aten = torch.ops.aten


def _kernels() -> dict[Any, Any]:
    kept = exported_program._split_decomp_table_to_cia_and_python_decomp({})[0]
    return {operator: dict(operator.py_kernels) for operator in kept}


def _shapes(kernels: dict[Any, Any]) -> dict[Any, Any]:
    return {operator: set(found) for operator, found in kernels.items()}


def test_operators_are_kept_as_torch_keeps_them_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, fakes = _kernels(), dict(fake_impls.op_implementations_dict)
    with exported_program._override_composite_implicit_decomp(dict.fromkeys(before, _preserved())):
        torchs, torchs_fakes = _shapes(_kernels()), set(fake_impls.op_implementations_dict)
    fake_impls.op_implementations_dict.update(fakes)
    with composites_kept():
        assert _shapes(_kernels()) == torchs
    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", None)  # known by now
    for _ in range(2):
        with composites_kept():
            assert _shapes(_kernels()) == torchs
            assert set(fake_impls.op_implementations_dict) == torchs_fakes
        assert _kernels() == before
        assert fake_impls.op_implementations_dict == fakes


def test_torch_is_asked_again_where_an_operator_has_something_new(monkeypatch: pytest.MonkeyPatch) -> None:
    with composites_kept():
        pass
    asked: list[bool] = []
    override = exported_program._override_composite_implicit_decomp

    def counted(operators: Any) -> Any:
        asked.append(True)
        return override(operators)

    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", counted)
    monkeypatch.setitem(aten.linear.default.py_kernels, torch._C.DispatchKey.AutogradCPU, _preserved())
    with composites_kept():
        assert aten.linear.default.py_kernels[torch._C.DispatchKey.AutogradCPU] is _preserved()
    assert asked


def _preserved() -> Callable[..., Any]:
    from torch._export.utils import _special_op_to_preserve_cia

    return _special_op_to_preserve_cia
