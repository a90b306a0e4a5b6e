"""What people do to a compiled model: followed at the next call, or refused by name and given back bit for bit."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.capture import capture

X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(2, 3, 4)


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Two blocks, and what a step cache would keep."""

    kept: Any
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.offset = torch.full((4,), 0.5, dtype=torch.float64)
        self.processor: Any = {"scales": [1.0], "table": torch.ones(4, dtype=torch.float64)}
        self.kept = None
        self.log: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x * self.offset * self.processor["scales"][0] * self.processor["table"]  # type: ignore[no-any-return]


def net(kind: type[Net] = Net) -> Any:
    torch.manual_seed(0)
    return kind().double().eval()


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-12 * theirs.abs().max())


def _hook(scale: float) -> Callable[..., Any]:
    return lambda module, args, result: result * scale


def _closure(block: Any, scale: float) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x + scale * block.down(nn.functional.gelu(block.up(x)))  # type: ignore[no-any-return]

    return forward


def _partial(block: Any, scale: float) -> Any:
    return functools.partial(lambda block, scale, x: block.up(x)[..., :4] * scale, block, scale)


Switch = Callable[[Any], Any]
FOLLOWED: dict[str, tuple[Switch, ...]] = {
    "hooks on a child, and their removal": (
        lambda m: setattr(m, "handle", m.blocks[1].register_forward_hook(_hook(0.5))),
        lambda m: m.blocks[1].register_forward_hook(_hook(3.0)),
        lambda m: m.handle.remove(),
        lambda m: m.blocks[0].up.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    ),
    "a closure in forward, again and again": (
        lambda m: setattr(m.blocks[1], "forward", _closure(m.blocks[1], 0.5)),
        lambda m: setattr(m.blocks[1], "forward", _closure(m.blocks[1], 2.0)),
        lambda m: setattr(m.blocks[1], "forward", _closure(m.blocks[1], -1.0)),
    ),
    "a partial in forward, again and again": (
        lambda m: setattr(m.blocks[0], "forward", _partial(m.blocks[0], 0.5)),
        lambda m: setattr(m.blocks[0], "forward", _partial(m.blocks[0], 2.0)),
    ),
    "a tensor that is an attribute": (
        lambda m: setattr(m, "offset", torch.full((4,), 2.0, dtype=torch.float64)),
        lambda m: m.offset.mul_(3),
        lambda m: m.offset.data.add_(1),
    ),
    "inside of a processor": (
        lambda m: m.processor["scales"].__setitem__(0, 2.0),
        lambda m: m.processor["table"].add_(1),
        lambda m: m.processor.update(table=torch.full((4,), 5.0, dtype=torch.float64)),
    ),
    "hooks around the model itself": (
        lambda m: m.register_forward_hook(_hook(2.0)),
        lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
        lambda m: m.offset.add_(1),
    ),
    "a parametrization": (
        lambda m: nn.utils.parametrizations.weight_norm(m.blocks[0].up),
        lambda m: m.blocks[0].up.parametrizations.weight.original0.data.mul_(2),
        lambda m: nn.utils.parametrize.remove_parametrizations(m.blocks[0].up, "weight"),
        lambda m: nn.utils.weight_norm(m.blocks[1].up),
        lambda m: m.blocks[1].up.weight_v.data.mul_(-1),
    ),
    "weights that were shared": (
        lambda m: setattr(m.blocks[0].up, "weight", m.blocks[1].up.weight),
        lambda m: setattr(m.blocks[1].up, "weight", nn.Parameter(m.blocks[1].up.weight.detach() * 2)),
    ),
}


@pytest.mark.parametrize("switches", FOLLOWED.values(), ids=FOLLOWED.keys())
@torch.no_grad()
def test_a_change_is_followed(switches: tuple[Switch, ...]) -> None:
    ours, theirs = net(), net()
    sicompiler.compile_for_budget(ours, "64MiB")
    before = theirs(X)
    assert same(ours(X), before)
    for number, switch in enumerate(switches):
        switch(ours)
        switch(theirs)
        assert same(ours(X), theirs(X)), number
    sicompiler.release(ours)
    assert torch.equal(ours(X), theirs(X))


@torch.no_grad()
def test_a_class_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = net(), net()
    sicompiler.compile_for_budget(ours, "64MiB")
    assert same(ours(X), theirs(X))
    monkeypatch.setattr(Block, "forward", lambda self, x: x * 3)
    assert same(ours(X), theirs(X))
    monkeypatch.setattr(Net, "forward", lambda self, x: self.blocks[0](x) - 1)
    assert same(ours(X), theirs(X))
    monkeypatch.undo()
    assert same(ours(X), theirs(X))
    assert len(sicompiler.report(ours).plans) == 3, "the first plan was found again"


class Counts(Net):
    """Skips every third call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = getattr(self, "count", 3) + 1
        return x if self.count % 3 == 0 else super().forward(x)


class CountsOnTheClass(Net):
    """A counter where step caches put it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        return super().forward(x)


class AddsTheCallBefore(Net):
    """The residual of the call before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x)
        self.kept = result if self.kept is None else result + self.kept
        return self.kept  # type: ignore[no-any-return]


class KeepsTheFirst(Net):
    """What the first call has computed serves all later ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.blocks[0](x)
        return self.kept + self.blocks[1](x)  # type: ignore[no-any-return]


class KeepsWeights(Net):
    """A product of weights, made once: later weights don't count."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.blocks[0].up.weight.sum()  # type: ignore[operator, union-attr]
        return super().forward(x) * self.kept  # type: ignore[no-any-return]


class Records(Net):
    """Features for others to read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(self.blocks[0](x))
        return super().forward(x)


class WritesInPlace(Net):
    """A running offset, in a tensor that is no buffer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.offset.add_(1)
        return super().forward(x)


class Draws(Net):
    """Noise of torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.randn_like(x)


REFUSED: dict[type[Net], str] = {
    Counts: "`count`",
    CountsOnTheClass: r"`Net.calls|`CountsOnTheClass.calls",
    AddsTheCallBefore: "`kept`",
    KeepsTheFirst: "`kept`",
    KeepsWeights: "made of weights.*`kept`",
    Records: r"`log` changes at every call",
    WritesInPlace: "`offset` changes at every call",
    Draws: r"draws random numbers \(aten.randn_like",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_what_a_call_leaves_for_the_next_is_refused_by_name(kind: type[Net]) -> None:
    ours, theirs = net(kind), net(kind)
    sicompiler.compile_for_budget(ours, "64MiB")
    for _ in range(2):
        with pytest.raises(sicompiler.CaptureError, match=REFUSED[kind]):
            ours(X)
    sicompiler.release(ours)
    for _ in range(4):
        torch.manual_seed(1)
        wanted = theirs(X)
        torch.manual_seed(1)
        assert torch.equal(ours(X), wanted)


@torch.no_grad()
def test_a_counter_is_told_with_its_values() -> None:
    ours = net()
    sicompiler.compile_for_budget(ours, "64MiB", example_inputs=((X,), {}))
    ours.blocks[1].counter = 3

    def forward(x: torch.Tensor) -> torch.Tensor:
        ours.blocks[1].counter += 1
        return x

    ours.blocks[1].forward = forward
    line = r"`blocks.1.counter` changes at every call: 3 -> 4\n.*compile_for_budget\(pipe, rehash=...\)"
    with pytest.raises(sicompiler.CaptureError, match=line):
        ours(X)
    assert ours.blocks[1].counter == 3
    del ours.blocks[1].forward
    assert same(ours(X), net()(X)), "as soon as it is gone, the model runs again"


@torch.no_grad()
def test_a_hook_that_records_is_refused_by_name() -> None:
    ours, seen = net(), []
    sicompiler.compile_for_budget(ours, "64MiB", example_inputs=((X,), {}))
    handle = ours.blocks[1].register_forward_hook(lambda module, args, result: seen.append(result))
    with pytest.raises(sicompiler.CaptureError, match=r"`blocks.1 forward hook 0 variable seen` changes at every call"):
        ours(X)
    assert seen == []
    handle.remove()
    assert same(ours(X), net()(X))


@torch.no_grad()
def test_a_hook_for_all_modules_is_refused_by_name() -> None:
    ours = net()
    sicompiler.compile_for_budget(ours, "64MiB", example_inputs=((X,), {}))
    handle = nn.modules.module.register_module_forward_hook(_hook(2.0))
    try:
        with pytest.raises(sicompiler.CaptureError, match="hooks are registered for all modules"):
            ours(X)
    finally:
        handle.remove()
    assert same(ours(X), net()(X))


class Tables(Net):
    """Legitimate: a table by size, filled when it is first needed; a list that a call begins anew."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tables = self.processor.setdefault("tables", {})
        if x.shape[1] not in tables:
            tables[x.shape[1]] = torch.arange(x.shape[1], dtype=x.dtype)[:, None].cos()
        self.log = [None] * 3
        self.log[0] = x
        x = self.log[0] * tables[x.shape[1]]
        self.log = [None] * 3
        return super().forward(x)


@torch.no_grad()
def test_caches_that_make_no_difference_to_the_next_call_are_fine() -> None:
    ours, theirs = net(Tables), net(Tables)
    sicompiler.compile_for_budget(ours, "64MiB")
    for length in (3, 2, 3):
        x = X[:, :length]
        assert same(ours(x), theirs(x))
    assert "tables" not in ours.processor, "nothing of the trace is left"


@torch.no_grad()
def test_the_line_of_a_new_plan_names_what_changed_and_the_seconds(caplog: pytest.LogCaptureFixture) -> None:
    ours = net()
    sicompiler.compile_for_budget(ours, "64MiB", example_inputs=((X,), {}))
    with caplog.at_level(logging.WARNING, "sicompiler"):
        ours.processor["scales"][0] = 0.5
        ours(X)
        ours.blocks[0].forward = _closure(ours.blocks[0], 2.0)
        ours(X)
        ours(X[:1])
    lines = [record.getMessage() for record in caplog.records if record.name == "sicompiler"]
    wanted = (
        r"`processor['scales']` [1.0] -> [0.5]",
        r"`blocks.0.forward` was replaced",
        r"new input shapes (2, 3, 4) -> (1, 3, 4)",
    )
    assert len(lines) == 3
    for line, why in zip(lines, wanted, strict=True):
        assert re.fullmatch(rf"Net: planned again in [\d.]+ \w+, as {re.escape(why)}", line), line


def test_a_trace_leaves_nothing_behind_where_it_is_refused() -> None:
    for kind in REFUSED:
        model = net(kind)
        before = {name: repr(value) for name, value in vars(model).items()}
        with pytest.raises(sicompiler.CaptureError):
            capture(model, (X,))
        assert {name: repr(value) for name, value in vars(model).items()} == before
