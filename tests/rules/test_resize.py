"""Arguments that bake in sizes: what changes with a slice of the result, and what must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._ops import OpOverload

from sicompiler.axes.resize import bakes_sizes, copying_twin, resize

aten = torch.ops.aten

# operator, arguments behind the first, rank of the result, dim, arguments of the slice (of size 5)
ROWS: list[tuple[OpOverload, list[Any], int, int, list[Any]]] = [
    (aten.view.default, [[2, 8, 3]], 3, 1, [[2, 5, 3]]),
    (aten.view.default, [[-1, 8, 3]], 3, 1, [[-1, 5, 3]]),
    (aten.view.default, [[2, -1, 3]], 3, 1, [[2, -1, 3]]),
    (aten.expand.default, [[8, -1]], 2, 0, [[5, -1]]),
    (aten.unflatten.int, [1, [2, 8]], 3, 2, [1, [2, 5]]),
    (aten.unflatten.int, [-1, [8, 2]], 3, 1, [-1, [5, 2]]),
    (aten.unflatten.int, [-1, [8, 2]], 3, 0, [-1, [8, 2]]),
    (aten.upsample_nearest2d.vec, [[8, 6], None], 4, 2, [[5, 6], None]),
    (aten.upsample_nearest2d.vec, [[8, 6], None], 4, 1, [[8, 6], None]),
    (aten.upsample_nearest2d.vec, [None, [2.0, 2.0]], 4, 2, [None, [2.0, 2.0]]),
    (aten.split.Tensor, [8, -1], 2, 1, [5, -1]),
    (aten.split.Tensor, [8, -1], 2, 0, [8, -1]),
    (aten.split_with_sizes.default, [[8, 8], 1], 2, 1, [[5, 5], 1]),
    (aten.narrow.default, [0, 0, 8], 2, 0, [0, 0, 5]),
    (aten.new_zeros.default, [[8, 3]], 2, 0, [[5, 3]]),
    (torch.ops.sicompiler.group_stats.default, [8], 3, 1, [5]),
]


@pytest.mark.pure
@pytest.mark.parametrize(("target", "args", "rank", "dim", "expected"), ROWS)
def test_resize(target: OpOverload, args: list[Any], rank: int, dim: int, expected: list[Any]) -> None:
    changed, kwargs = resize(target, ("x", *args), {}, rank, dim, 5)
    assert bakes_sizes(target)
    assert (changed, kwargs) == (("x", *expected), {})


@pytest.mark.pure
def test_keyword_arguments_are_changed_in_place() -> None:
    repeated = resize(aten.repeat_interleave.self_int, ("x", 2), {"dim": 1, "output_size": 8}, 2, 1, 6)
    assert repeated == (("x", 2), {"dim": 1, "output_size": 6})
    assert resize(aten.zeros.default, ([8, 3],), {"dtype": torch.float64}, 2, 0, 5) == (
        ([5, 3],),
        {"dtype": torch.float64},
    )


@pytest.mark.pure
def test_an_operator_that_bakes_nothing_is_left_alone() -> None:
    assert not bakes_sizes(aten.add.Tensor)
    assert resize(aten.add.Tensor, ("x", "y"), {}, 2, 0, 5) == (("x", "y"), {})


@pytest.mark.pure
def test_groups_scale_with_their_channels() -> None:
    assert resize(aten.group_norm.default, ("x", 4), {}, 4, 1, 6, old_size=12) == (("x", 2), {})
    assert resize(aten.group_norm.default, ("x", 4), {}, 4, 0, 6) == (("x", 4), {})
    convolution = ("x", "w", None, [1], [0], [1], 4)
    assert resize(aten.conv1d.default, convolution, {}, 3, 1, 4, old_size=8)[0][-1] == 2
    assert resize(aten.conv1d.default, convolution, {}, 2, 0, 4, old_size=8)[0][-1] == 2
    with pytest.raises(ValueError, match="num_groups scales with dim 1: resize needs its old_size"):
        resize(aten.group_norm.default, ("x", 4), {}, 4, 1, 6)


@pytest.mark.pure
def test_copies_change_where_they_are_all_of_a_dim() -> None:
    assert resize(aten.repeat.default, ("x", [8, 2]), {}, 2, 0, 5, old_size=8) == (("x", [5, 2]), {})
    assert resize(aten.repeat.default, ("x", [8, 2]), {}, 2, 1, 4, old_size=6) == (("x", [8, 2]), {}), "two copies of 2"
    assert resize(aten.tile.default, ("x", [8]), {}, 2, 1, 5, old_size=8) == (("x", [5]), {})
    assert resize(aten.tile.default, ("x", [8]), {}, 2, 0, 5, old_size=3) == (("x", [8]), {})


def test_a_node_as_the_new_size() -> None:
    graph = fx.Graph()
    x, length = graph.placeholder("x"), graph.placeholder("length")
    length.meta["val"] = 6
    args, _ = resize(aten.view.default, (x, [2, 8]), {}, 2, 1, length)
    assert args == (x, [2, length])
    args, _ = resize(aten.group_norm.default, (x, 4), {}, 4, 1, length, old_size=12)
    graph.output(args[1])
    assert args[1].meta["val"] == 2
    assert fx.Interpreter(fx.GraphModule({}, graph)).run(None, 6) == 2


@pytest.mark.pure
def test_slices_are_reshaped_rather_than_viewed() -> None:
    assert copying_twin(aten.view.default) is aten.reshape.default
    assert copying_twin(aten.view_as.default) is aten.reshape_as.default
    assert copying_twin(aten.add.Tensor) is aten.add.Tensor
