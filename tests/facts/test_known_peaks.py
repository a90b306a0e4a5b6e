"""What a model as it is peaks at is told where that is known: an earlier process has looked, or it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.cache.store import default_store
from sicompiler.compiler import prepare as prepare_module
from sicompiler.compiler.planner import Planner
from tests.cache_parts import Block, X, compiled, folder
from tests.mini_pipeline import mini, picture

__all__ = ["folder"]  # a fixture

PEAK = 5 * 2**20
MARGIN = 2**12  # that a pipeline leaves for what nobody counts


def _planner(model: nn.Module, device_type: str = "cpu") -> Planner:
    return prepare_module.prepare(model, (X,), {}, device_type=device_type, store=default_store())[1]


def _look() -> int | None:
    return PEAK


def _fail() -> int | None:
    raise AssertionError("somebody has looked already")


def test_another_process_need_not_look_again(folder: Path) -> None:
    assert _planner(Block()).untouched_bytes() is None
    assert _planner(Block()).untouched_bytes(_look) == PEAK
    again = _planner(Block())
    assert again.untouched_bytes() == again.untouched_bytes(_fail) == PEAK
    assert _planner(Block(), "cuda").untouched_bytes() is None


def test_that_it_cannot_be_known_is_known_too(folder: Path) -> None:
    assert _planner(Block()).untouched_bytes(lambda: None) is None
    assert _planner(Block()).untouched_bytes(_fail) is None


def test_without_a_cache_it_is_looked_at_every_time() -> None:
    planner = prepare_module.prepare(Block(), (X,), {})[1]
    assert planner.untouched_bytes() is None
    assert planner.untouched_bytes(_look) == PEAK
    assert planner.untouched_bytes() is None


class Keeps(nn.Module):
    """Holds a value longer than anybody needs it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        y = x + 1
        z = y * 2
        return z.sin()


class LetsGo(nn.Module):
    """The same graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float in, float out."""
        return ((x + 1) * 2).sin()


def test_the_same_graph_of_other_code_is_another_call(folder: Path) -> None:
    keeps, lets_go = _planner(Keeps()), _planner(LetsGo())
    keeps.untouched_bytes(_look)
    assert keeps.call
    assert lets_go.untouched_bytes() is None


def test_a_report_tells_what_is_known(folder: Path) -> None:
    unknown = Block()
    compiled(unknown)
    assert "untouched peak" not in str(sicompiler.report(unknown))
    _planner(Block()).untouched_bytes(_look)
    known = Block()
    compiled(known, "620KiB")
    report = sicompiler.report(known)
    assert "untouched peak  5 MiB" in str(report)
    assert json.loads(report.to_json())["plans"][0]["untouched_peak_bytes"] == PEAK


def test_a_page_tells_what_is_known(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    _planner(Block()).untouched_bytes(_look)
    known = Block()
    compiled(known)
    assert "5 MiB" in sicompiler.report(known).to_html(tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_verify_has_measured_is_known() -> None:
    model = Block()
    compiled(model)
    found = sicompiler.verify(model)
    assert sicompiler.report(model).untouched == (found.untouched_peak_bytes,)


def test_a_pipeline_tells_it_beside_the_unsliced_peak() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, 1)
    pipe(picture())
    assert "untouched" not in str(sicompiler.report(pipe))
    found = sicompiler.verify(pipe)
    rows = sicompiler.report(pipe).phases
    peak_bytes = max(row.untouched_peak_bytes or 0 for row in rows)
    assert 0 <= peak_bytes - found.untouched_peak_bytes <= MARGIN
    assert " untouched " in str(sicompiler.report(pipe))
