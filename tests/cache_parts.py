"""What tests of the cache share: a folder of their own, a small model, and what was worked out in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.compiler import prepare as prepare_module
from sicompiler.compiler import searches


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
