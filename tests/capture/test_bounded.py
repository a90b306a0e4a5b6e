"""Lengths that depend on data: the same output for every mask from one graph of static shapes, or a refusal."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import sicompiler
from sicompiler.capture import Program, capture
from sicompiler.capture.questions import Decider
from sicompiler.facts.storages import fake_tensors
from sicompiler.runtime.verify import errors
from sicompiler.testing import run_program
from tests.zoo import captured

FLOAT64 = 1e-12
TEXT = 4


class Masked(nn.Module):
    """Image tokens and the valid text tokens attend to each other; the text is padded again afterwards."""

    def __init__(self, *, value: float = 0.0, longer: int = 0) -> None:
        super().__init__()
        self.value, self.longer = value, longer

    def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        valid = torch.nonzero(mask).reshape(-1)
        q, k, v = (
            torch.cat([a, b[:, :, valid]], dim=2)
            for a, b in ((image, text), (image * 2, text * 0.5), (image.cos(), text.sin()))
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        total = image.shape[2] + text.shape[2] + self.longer
        return nn.functional.pad(out, (0, 0, 0, total - out.shape[2]), value=self.value) + 1


class OnlyQueries(nn.Module):
    """The image and the selected text ask, the image answers."""

    def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        valid = torch.nonzero(mask).squeeze(1)
        asking = torch.cat([image, text[:, :, valid]], 2).unsqueeze(0).squeeze(0)
        out = nn.functional.scaled_dot_product_attention(asking, image, image)
        return nn.functional.pad(out, (1, 0, 0, image.shape[2] + text.shape[2] - out.shape[2]))


class OnlyKeys(nn.Module):
    """The image asks the image and the selected text; nothing of variable length is returned."""

    def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([image, text[:, :, torch.nonzero(mask).flatten()]], dim=2)
        out: torch.Tensor = nn.functional.scaled_dot_product_attention(image, tokens, tokens, scale=0.5)
        return out.transpose(1, 2).flatten(2)


class Blocks(nn.Module):
    """Four blocks that select by the same mask, by its opposite, and by the mask that a block has written into."""

    def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        written = mask.clone()
        for i in range(4):
            for which in (mask, ~mask, written[None][0]):
                valid = torch.nonzero(which.flatten()).flatten()
                tokens = torch.cat([image, text[:, :, valid]], dim=2)
                image = nn.functional.scaled_dot_product_attention(image, tokens, tokens)
            written[i] = mask[i - 1]
        return image


def inputs(mask: Any = (1, 0, 1, 1)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 2, 5, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(1, 2, TEXT, 8, generator=generator, dtype=torch.float64)
    return image, text, torch.tensor(mask, dtype=torch.bool)


def inputs_without_values() -> list[torch.Tensor]:
    """Fake inputs: where there is no bound, there is nothing to decide by either."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return [mode.from_tensor(value, static_shapes=True) for value in inputs()]


def is_static(program: Program) -> bool:
    sizes = [size for node in program.graph_module.graph.nodes for t in fake_tensors(node) for size in t.shape]
    return all(type(size) is int for size in sizes)


@pytest.mark.parametrize(
    "model", [Masked(), Masked(value=2.5), Masked(longer=3), OnlyQueries(), OnlyKeys()], ids=lambda m: type(m).__name__
)
def test_one_graph_is_exact_for_every_mask(model: nn.Module) -> None:
    model.eval()
    program = capture(model, inputs())
    assert is_static(program)
    for mask in itertools.product((0, 1), repeat=TEXT):
        image, text, valid = inputs(mask)
        theirs = model(image, text, valid)
        text[:, :, ~valid] = torch.nan  # what is not selected is not read either
        ours = run_program(program, model, (image, text, valid), {})
        assert ours.shape == theirs.shape
        assert errors(ours, theirs)[1] <= FLOAT64, mask


def test_masks_with_the_same_entries_share_a_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Program] = []
    symbols: list[int] = []
    for shared in (True, False):
        made: list[Any] = []
        create = ShapeEnv.create_unbacked_symint

        def counted(self: ShapeEnv, *args: Any, made: list[Any] = made, create: Any = create, **kwargs: Any) -> Any:
            made.append(create(self, *args, **kwargs))
            return made[-1]

        with monkeypatch.context() as patch:
            patch.setattr(ShapeEnv, "create_unbacked_symint", counted)
            if not shared:
                patch.setattr(Decider, "count_as_before", lambda self, mask: None)
            programs.append(capture(Blocks(), inputs()))
        symbols.append(len(made))
    assert programs[0].graph_module.code == programs[1].graph_module.code
    assert symbols[0] <= symbols[1] - 3  # the opposite of the mask is computed four times
    for mask in itertools.product((0, 1), repeat=TEXT):
        ours = run_program(programs[0], Blocks(), inputs(mask), {})
        assert errors(ours, Blocks()(*inputs(mask)))[1] <= FLOAT64, mask


def test_other_dtypes_of_masks_select_what_is_not_zero() -> None:
    image, text, mask = inputs()
    numbers = mask.to(torch.int64) * torch.tensor([-3, 1, 2, 7])
    program = capture(Masked().eval(), (image, text, numbers))
    ours = run_program(program, Masked(), (image, text, numbers), {})
    assert errors(ours, Masked().eval()(image, text, mask))[1] <= FLOAT64


def test_what_is_inserted_tells_the_line_of_what_it_stands_for() -> None:
    program = capture(Masked().eval(), inputs())
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function":
            assert "test_bounded.py" in node.meta["stack_trace"], node.name


@pytest.mark.parametrize("budget", ["1GiB", "floor"])
def test_it_is_planned_and_compiled_like_any_other(budget: str) -> None:
    model = Masked().eval()
    if budget == "floor":
        with pytest.raises(sicompiler.OverBudget) as caught:
            sicompiler.compile_for_budget(model, "1KiB", example_inputs=(inputs(), {}))
        budget = f"{caught.value.floor_bytes}B"
    theirs = model(*inputs((0, 1, 0, 1)))
    sicompiler.compile_for_budget(model, budget, example_inputs=(inputs(), {}))
    assert errors(model(*inputs((0, 1, 0, 1))), theirs)[1] <= FLOAT64


@pytest.mark.parametrize("kept", [0, 1, 3, 7])
def test_mochi_is_exact_for_other_masks_than_it_was_captured_with(kept: int) -> None:
    (module, args, kwargs), program = captured("mochi")
    assert is_static(program)
    mask = torch.arange(7).expand(2, 7) < kept
    mask = torch.stack([mask[0], mask[1].flip(0)])
    kwargs = {**kwargs, "encoder_attention_mask": mask}
    with torch.no_grad():
        theirs = module(*args, **kwargs)
    assert errors(run_program(program, module, args, kwargs), theirs)[1] <= FLOAT64


# Refused: each with the operator, the reason and the line


def selected(text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return text[:, :, torch.nonzero(mask).flatten()]


def attend(q: torch.Tensor, kv: torch.Tensor, **options: Any) -> torch.Tensor:
    found: torch.Tensor = nn.functional.scaled_dot_product_attention(q, kv, kv, **options)
    return found


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "returned": (lambda i, t, m: selected(t, m), "index.* it is a result of the model"),
    "summed": (lambda i, t, m: selected(t, m).sum(), "aten.sum.default.*there is no rule"),
    "by a mask": (lambda i, t, m: t[:, :, m].sum(), "depend on the values"),
    "counted": (lambda i, t, m: i * torch.nonzero(m).shape[0], "aten.mul.*there is no rule"),
    "two dims": (lambda i, t, m: torch.nonzero(m.view(2, 2)).sum(), "only a mask of one dim"),
    "shifted": (lambda i, t, m: t[:, :, torch.nonzero(m).flatten() - 1].sum(), "aten.sub.Tensor.*there is no rule"),
    "in front": (lambda i, t, m: attend(i, torch.cat([selected(t, m), i], 2)), "aten.cat.*only the last piece"),
    "causal": (lambda i, t, m: attend(i, torch.cat([i, selected(t, m)], 2), is_causal=True), "causal"),
    "longer than what it indexes": (
        lambda i, t, m: attend(i, torch.cat([i, selected(t[:, :, :3], m)], 2)),
        "mask of 4 entries is longer than dim 2, of 3",
    ),
    "attended twice": (
        lambda i, t, m: attend(i, attend(torch.cat([i, selected(t, m)], 2), i)),
        "must be 0 beyond the end",
    ),
    "padded in front": (
        lambda i, t, m: nn.functional.pad(selected(t, m), (0, 0, 4 - torch.nonzero(m).shape[0], 0)),
        "aten.pad.*constant at the end",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_with_the_operator_and_the_line(case: str) -> None:
    function, says = REFUSED[case]

    class Model(nn.Module):
        def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> Any:
            return function(image, text, mask)

    with pytest.raises(sicompiler.CaptureError, match=r"test_bounded\.py:\d+") as caught:
        capture(Model().eval(), inputs_without_values())
    assert re.search(says, str(caught.value)), str(caught.value)


class Asserts(nn.Module):
    """Says that something is selected, which a mask may contradict."""

    def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        valid = torch.nonzero(mask).flatten()
        torch._check(valid.shape[0] >= 2)
        tokens = torch.cat([image, text[:, :, valid]], 2)
        return attend(image, tokens)


def test_an_assertion_that_data_may_break_is_refused() -> None:
    with pytest.raises(sicompiler.CaptureError, match="it asserts u0 >= 2, which depends on data"):
        capture(Asserts(), inputs_without_values())
