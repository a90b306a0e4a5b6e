"""What a model decides by values of tensors: decided on the inputs of a call, and guarded by the outcome."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import sicompiler
from sicompiler.capture import capture
from sicompiler.runtime.measure import measure_peak
from sicompiler.runtime.verify import errors
from sicompiler.testing import run_program

FLOAT64 = 1e-12


class Asking(nn.Module):
    """Has a layer, a buffer, and a tensor in a plain attribute; what it asks is a function of a test."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8).double()
        self.register_buffer("limits", torch.tensor([3, 1]))
        self.plain = torch.tensor([2, 5])
        self.function = function

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.function(self, x, mask)


def x_and_mask(ones: int = 3, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, generator=generator, dtype=torch.float64) * scale
    return x, (torch.arange(8) < ones).long()


def calls() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A, B, A: what was decided once comes back later."""
    a, b = x_and_mask(3), x_and_mask(5, -2.0)
    return [a, b, a]


def per_sample(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lengths = torch.stack([mask.sum(), mask.sum() - 1]).clamp(min=1)
    rows = [model.layer(x[i : i + 1])[:, :length] for i, length in enumerate(lengths.tolist())]
    return torch.cat(rows, dim=1)


def nested(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    def deep(y: torch.Tensor) -> torch.Tensor:
        def deeper() -> bool:
            return bool((y > 0.5).any())

        return y * 2 if deeper() else y / 3

    y = deep(x)
    return y[:, : mask.sum()] if mask[4] else y


def in_place(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    counts = mask.clone()
    before = int(counts.sum())
    counts[1:].add_(1)
    counts.data[0] = 2
    return x[:, :before] * int(counts.sum())


def overwritten(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, mask.bool()] = 0.0
    return y[:, ~mask.bool()] + y.sum()


def cast(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = nn.functional.linear(x.float(), torch.eye(8) * 1.5)
        h = h * 3 if h.sum() > 0 else h
        return h[:, mask > 0].double()


ASKS: dict[str, Callable[..., torch.Tensor]] = {
    "all": lambda m, x, mask: m.layer(x) if torch.all(x == 0) else m.layer(x) * 2,
    "any": lambda m, x, mask: x + 1 if (x > 0.5).any() else x - 1,
    "bool": lambda m, x, mask: x if bool(mask[4]) else x * 3,
    "item": lambda m, x, mask: m.layer(x)[:, : int(mask.sum().item())],
    "index by a tensor": lambda m, x, mask: m.layer(x)[:, : mask.sum()],
    "a float": lambda m, x, mask: x * (1 + x.abs().max().item()),
    "a sign of zero": lambda m, x, mask: x + float(x[0, 0] * 0.0).hex().count("-"),
    "tolist": lambda m, x, mask: x[:, : sum(mask.tolist())] * 2,
    "for": lambda m, x, mask: sum((x * int(v) for v in mask), start=x),
    "mask": lambda m, x, mask: m.layer(x)[:, mask > 0] * 2,
    "masked select": lambda m, x, mask: torch.masked_select(x, mask > 0) + 1,
    "nonzero": lambda m, x, mask: x[:, torch.nonzero(mask).flatten()].sum(0),
    "nonzero, as a tuple": lambda m, x, mask: x[:, torch.nonzero(mask, as_tuple=True)[0]].sum(0),
    "where": lambda m, x, mask: x[torch.where(x > 0)].cumsum(0),
    "unique": lambda m, x, mask: torch.unique(mask) + x.sum(),
    "unique, in a row": lambda m, x, mask: torch.unique_consecutive(mask[:5]) + x.sum(),
    "bincount": lambda m, x, mask: torch.bincount(mask.cumsum(0)) + x.sum(),
    "how much of what a mask picks": lambda m, x, mask: x[:, : int(mask[mask > 0].sum())] * 2,
    "the last of what is picked": lambda m, x, mask: x[:, : int(torch.masked_select(mask, mask > 0)[-1])],
    "where it ends": lambda m, x, mask: x[:, : int(torch.nonzero(mask)[-1, 0]) + 1],
    "how much of what is repeated": lambda m, x, mask: x[:, : int(torch.repeat_interleave(mask.cumsum(0))[-1])],
    "the largest that is there": lambda m, x, mask: x[:, : int(torch.unique(mask.view(2, -1))[-1])],
    "counts of what is there": lambda m, x, mask: x * int(torch.unique(mask, return_counts=True)[1].amax()),
    "places of what is there": lambda m, x, mask: x * int(torch.unique(mask, return_inverse=True)[1][2]),
    "runs": lambda m, x, mask: x[:, : int(torch.unique_consecutive(mask.cumsum(0)).sum())],
    "lengths of runs": lambda m, x, mask: x * int(torch.unique_consecutive(mask, return_counts=True)[1][0]),
    "the most frequent": lambda m, x, mask: x[:, : int(torch.bincount(mask.cumsum(0)).argmax())] + 1,
    "cond": lambda m, x, mask: torch.cond(mask.sum() > 3, lambda a: a * 2, lambda a: a - 1, (x,)),
    "tensor split": lambda m, x, mask: torch.tensor_split(x, mask.sum().view(1), dim=1)[0] * 2,
    "repeats": lambda m, x, mask: torch.repeat_interleave(x, mask, dim=1),
    "equal": lambda m, x, mask: x if torch.equal(mask, torch.ones_like(mask)) else x * 3,
    "allclose": lambda m, x, mask: x if torch.allclose(x, x.abs()) else x + 1,
    "the longest": lambda m, x, mask: x[:, : mask.cumsum(0).max()],
    "arange": lambda m, x, mask: torch.arange(mask.sum()) + x.sum(),
    "split": lambda m, x, mask: torch.split(x, [int(mask.sum()), 8 - int(mask.sum())], dim=1)[0] * 2,
    "a buffer": lambda m, x, mask: x[:, : int(m.limits[0])] + 1,
    "a plain tensor": lambda m, x, mask: x[:, : int(m.plain[1])] + 1,
    "a weight": lambda m, x, mask: x * 2 if m.layer.weight.norm() > 1 else x,
    "an activation": lambda m, x, mask: m.layer(x).sin() if m.layer(x).mean() > 0 else m.layer(x),
    "one after another": lambda m, x, mask: x[:, : mask.sum()] if (m.layer(x) > 0.5).any() else x,
    "per sample": per_sample,
    "nested": nested,
    "in place": in_place,
    "overwritten": overwritten,
    "in an autocast": cast,
}


@pytest.mark.parametrize("asks", ASKS)
def test_every_call_is_that_of_the_untouched_model_whatever_comes_out(asks: str) -> None:
    model = Asking(ASKS[asks]).eval()
    twin = copy.deepcopy(model)
    sicompiler.compile_for_budget(model, 1)
    seen = []
    for x, mask in calls():
        ours = model(x, mask)
        theirs = twin(x, mask)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert errors(ours, theirs)[1] <= FLOAT64
        seen.append(len(sicompiler.report(model).plans))
    assert seen[1] == seen[2]  # A again: its plan is still there


LISTS: dict[str, Callable[..., torch.Tensor]] = {
    "of numbers": lambda m, x, mask: x * torch.tensor([mask.sum(), mask.max()]).sum(),
    "of several dtypes": lambda m, x, mask: x * torch.tensor([[mask.sum(), 2.5], [x.sum(), True]]).sum(),
    "of another dtype": lambda m, x, mask: x[0] + torch.as_tensor((x[0, 0], x[1, 1]), dtype=torch.float32)[1],
}


@pytest.mark.parametrize("made", LISTS)
def test_a_tensor_made_of_tensors_is_computed_from_them(made: str) -> None:
    model = Asking(LISTS[made]).eval()
    program = capture(model, x_and_mask())
    assert program.decided == ()
    for x, mask in calls():
        with torch.no_grad():
            theirs = model(x, mask)
        ours = run_program(program, model, (x, mask), {})
        assert ours.dtype == theirs.dtype
        assert errors(ours, theirs)[1] <= FLOAT64


def test_what_a_literal_says_is_no_decision() -> None:
    program = capture(Asking(lambda m, x, mask: x * torch.tensor([5, 6]).sum().item()).eval(), x_and_mask())
    assert program.decided == ()


def test_a_constant_written_in_place_and_asked_about_stays_what_was_spelled_out() -> None:
    def cut(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([3, 1])
        sizes += 1
        return x[:, : int(sizes[0])] * sizes[1]

    model, call = Asking(cut), x_and_mask()
    program = capture(model, call)
    assert errors(run_program(program, model, call, {}), model(*call))[1] <= FLOAT64


def test_where_a_bound_serves_nothing_is_decided() -> None:
    def attend(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, text = x.view(1, 1, 2, 8), x.view(1, 1, 2, 8).repeat(1, 1, 4, 1)
        kv = torch.cat([q, text[:, :, torch.nonzero(mask).flatten()]], dim=2)
        result: torch.Tensor = nn.functional.scaled_dot_product_attention(q, kv, kv)
        return result

    assert capture(Asking(attend).eval(), x_and_mask()).decided == ()


def test_a_yes_or_no_is_decided_in_the_first_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bound stands for it, and what a bound stands for stays open beside it."""

    def checked(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        torch._check((mask.sum() > 0).item())
        q, text = x.view(1, 1, 2, 8), x.view(1, 1, 2, 8).repeat(1, 1, 4, 1)
        kv = torch.cat([q, text[:, :, torch.nonzero(mask).flatten()]], dim=2)
        result: torch.Tensor = nn.functional.scaled_dot_product_attention(q, kv, kv)
        return result if not torch.equal(x[0], x[1]) else -result

    traces: list[int] = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        traces.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    model = Asking(checked).eval()
    program = capture(model, x_and_mask())
    assert [one.outcome for one in program.decided] == [(True,), (False,)]
    assert len(traces) == 1
    for call in (x_and_mask(3), x_and_mask(5, -2.0)):
        assert errors(run_program(program, model, call, {}), model(*call))[1] <= FLOAT64


def test_weights_buffers_and_plain_tensors_that_change_are_asked_again() -> None:
    def function(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = x[:, : int(model.limits[0])] * int(model.plain[0])
        return y + 1 if model.layer.weight.norm() > 1 else y

    model = Asking(function).eval()
    twin = copy.deepcopy(model)
    sicompiler.compile_for_budget(model, 1)
    for change in (
        lambda m: None,
        lambda m: m.limits.fill_(2),
        lambda m: m.plain.fill_(7),
        lambda m: m.layer.weight.data.mul_(0.01),
    ):
        change(model)
        change(twin)
        assert errors(model(*x_and_mask()), twin(*x_and_mask()))[1] <= FLOAT64


class Deep(nn.Module):
    """Decides by something large that it computes first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Linear(64, 512), nn.Linear(512, 64)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.narrow(nn.functional.gelu(self.wide(x)))
        return y + x if y.abs().max() > 1 else y - x


def test_what_decides_is_planned_within_the_budget_too() -> None:
    model = Deep().eval()
    twin = copy.deepcopy(model)
    x = torch.randn(512, 64, dtype=torch.float64)
    with pytest.raises(sicompiler.OverBudget) as caught:
        sicompiler.compile_for_budget(model, "1KiB", example_inputs=((x,), {}), offload="none")
    budget = caught.value.floor_bytes
    sicompiler.compile_for_budget(model, f"{budget}B", example_inputs=((x,), {}), offload="none")
    weights = sum(p.nbytes for p in model.parameters())
    with measure_peak(torch.device("cpu")) as peak:
        ours = model(x)
    assert errors(ours, twin(x))[1] <= FLOAT64
    assert weights + x.nbytes + peak.bytes <= budget
    with measure_peak(torch.device("cpu")) as peak:
        twin(x)
    assert weights + x.nbytes + peak.bytes > budget


def test_without_values_there_is_nothing_to_decide_by() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = [mode.from_tensor(value, static_shapes=True) for value in x_and_mask()]
    for asks in ("all", "mask", "equal"):
        with pytest.raises(sicompiler.CaptureError, match=r"test_decisions\.py:\d+") as caught:
            capture(Asking(ASKS[asks]).eval(), fakes)
        assert "give real tensors" in str(caught.value)


def test_a_real_mask_among_fake_inputs_decides() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    x, mask = x_and_mask(5)
    program = capture(Asking(ASKS["item"]).eval(), (mode.from_tensor(x, static_shapes=True), mask))
    assert [one.outcome for one in program.decided] == [(5,)]
    (result,) = program.graph_module.graph.output_node().all_input_nodes
    assert result.meta["val"].shape == (2, 5)


NUMBERS: dict[str, Callable[..., torch.Tensor]] = {
    "looked up": lambda m, x, mask: m.layer.weight[mask.sum() - 1] + x,
    "looked up from the end": lambda m, x, mask: m.layer.weight[:, -mask.sum()] + x,
    "times": lambda m, x, mask: x * x[0, 1].item() + mask.sum().item(),
    "divided": lambda m, x, mask: (x - x[0, 0].float().item()) / (mask.sum().item()),
    "compared": lambda m, x, mask: torch.where(x > x.mean().item(), x, 0.0),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_only_meets_tensors_is_no_decision(number: str) -> None:
    model = Asking(NUMBERS[number]).eval()
    program = capture(model, x_and_mask(3))
    # torch 2.11 asks for the number of what is looked up: it is decided by then, and guarded
    assert program.decided == () or (number.startswith("looked up") and torch.__version__ < "2.12")
    for call in (x_and_mask(3), x_and_mask(5, -2.0), x_and_mask(8, 0.1))[: 1 if program.decided else 3]:
        with torch.no_grad():
            assert errors(run_program(program, model, call, {}), model(*call))[1] <= FLOAT64


def test_the_log_tells_what_came_out_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    model = Asking(ASKS["item"]).eval()
    sicompiler.compile_for_budget(model, 1, example_inputs=(x_and_mask(3), {}))
    with caplog.at_level(logging.WARNING, "sicompiler"):
        model(*x_and_mask(5))
    assert "comes out as 5 now" in caplog.text
    assert "test_decisions.py:" in caplog.text
    assert sicompiler.verify(model).fits  # by the mask of the last call, which was kept


def test_the_line_that_asks_is_told() -> None:
    program = capture(Asking(nested).eval(), x_and_mask())
    assert [one.decision.where.split(", in ")[1] for one in program.decided] == ["deeper", "nested"]


def test_a_refused_model_is_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    def function(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy()) if mask.any() else x

    model = Asking(function).eval()
    before = dict(model.__dict__)
    with pytest.raises(sicompiler.CaptureError, match=r"numpy.*\n.*test_decisions\.py:\d+, in function"):
        sicompiler.compile_for_budget(model, 1, example_inputs=(x_and_mask(), {}))
    assert model.__dict__ == before
    assert torch.equal(model(*x_and_mask()), x_and_mask()[0])
    assert capfd.readouterr() == ("", "")
