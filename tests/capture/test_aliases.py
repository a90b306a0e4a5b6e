"""What shares memory in eager mode shares it in a compiled model, whatever the schemas of operators say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import nn

import sicompiler

Share = Callable[[torch.Tensor], torch.Tensor]


class Writes(nn.Module):
    """Writes into a value, and reads another that may lie in the same memory.

    Args:
        share: makes the other.
        into_result: whether it is the other that is written into.
        way: what is done with both, with `torch.autocast` or a question between.
    """

    def __init__(self, share: Share, into_result: bool, way: str = "plain") -> None:
        super().__init__()
        self.share, self.into_result, self.way = share, into_result, way

    def forward(self, x: torch.Tensor) -> Any:
        """Both values, after the write."""
        y = x * 1.5
        z = self.share(y)
        if self.way == "autocast":
            with torch.autocast("cpu", enabled=False):
                (z if self.into_result else y).add_(1)
        else:
            (z if self.into_result else y).add_(1)
        if self.way == "question" and y.sum() < 0:
            return y - z, z
        return y, z


SHARING: dict[str, Share] = {
    "einsum that permutes": lambda y: torch.einsum("ij->ji", y),
    "einsum of the diagonal": lambda y: torch.einsum("ii->i", y),
    "einsum that computes": lambda y: torch.einsum("ij,kj->ik", y, y),
    "one einsum after another": lambda y: torch.einsum("ij->ji", torch.einsum("ij->ji", y)),
    "dropout that is off": lambda y: F.dropout(y, 0.5, training=False),
    "dropout of nothing": lambda y: F.dropout(y, 0.0, training=True),
    "dropout of channels": lambda y: F.dropout2d(y[None, None], 0.5, training=False)[0, 0],
    "alpha dropout": lambda y: F.alpha_dropout(y, 0.5, training=False),
    "unsafe chunk": lambda y: torch.unsafe_chunk(y, 2)[1],
    "unsafe split": lambda y: torch.unsafe_split(y, 1)[2],
    "unsafe split with sizes": lambda y: torch.unsafe_split_with_sizes(y, [1, 3])[1],
    "flatten of one": lambda y: torch._C._nn.flatten_dense_tensors([y]),
    "reshape": lambda y: y.reshape(2, 8),
    "reshape that copies": lambda y: y.t().reshape(16),
    "contiguous": lambda y: y.contiguous(),
    "a kernel that copies": lambda y: torch.native_channel_shuffle(y.view(1, 4, 2, 2), 1),
    "a cast to the same": lambda y: y.to(y.dtype),
}


def _assert_equal(model: nn.Module, x: torch.Tensor) -> None:
    expected = [value.clone() for value in pytree.tree_leaves(model(x.clone()))]
    sicompiler.compile_for_budget(model, "1 GiB")
    for value, own in zip(pytree.tree_leaves(model(x.clone())), expected, strict=True):
        assert torch.equal(value, own)


@pytest.mark.parametrize("into_result", [True, False], ids=["into the result", "into the operand"])
@pytest.mark.parametrize("share", SHARING.values(), ids=SHARING)
def test_a_write_reaches_all_that_shares_the_memory(share: Share, into_result: bool) -> None:
    _assert_equal(Writes(share, into_result), torch.randn(4, 4))


@pytest.mark.parametrize("name", ["einsum that permutes", "dropout that is off"])
@pytest.mark.parametrize("way", ["autocast", "question"])
def test_a_write_is_seen_by_questions_and_out_of_contexts(name: str, way: str) -> None:
    _assert_equal(Writes(SHARING[name], True, way), torch.full((4, 4), -0.1))


def test_a_write_reaches_the_views_of_a_mesh() -> None:
    class Grid(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            y = x * 1.5
            rows, columns = torch.meshgrid(y[0], y[1], indexing="ij")
            y.mul_(2)
            return rows, columns, y

    _assert_equal(Grid(), torch.randn(4, 4))


def test_lists_that_overlap_are_refused_by_name() -> None:
    class Swaps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x * 2, x + 1
            torch._foreach_add_([a, b], [b, a])
            return a * b

    model = Swaps()
    sicompiler.compile_for_budget(model, "1 GiB")
    with pytest.raises(sicompiler.CaptureError, match=r"_foreach_add_.* writes into one of them\n.*test_aliases"):
        model(torch.ones(4))


def test_lists_that_do_not_overlap_are_written_into() -> None:
    class Adds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x * 2, x + 1
            torch._foreach_add_([a, b], [x, x])
            return a * b

    _assert_equal(Adds(), torch.randn(4, 4))


@pytest.mark.parametrize("inside", [True, False], ids=["written inside", "written outside"])
@pytest.mark.parametrize("name", ["einsum that permutes", "unsafe chunk"])
def test_a_write_is_seen_on_both_sides_of_an_autocast_that_casts(name: str, inside: bool) -> None:
    class Casts(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            y = x * 1.5
            z = SHARING[name](y) if inside else y
            with torch.autocast("cpu", torch.bfloat16):
                z = z if inside else SHARING[name](y)
                if inside:
                    z.add_(1)
                w = y @ y
            if not inside:
                z.add_(1)
            return y, z, w

    _assert_equal(Casts(), torch.randn(4, 4))
