"""The printed form of every family's rule, on calls that show what is special about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload

from sicompiler.axes.registry import OpCall, factor_map, op_call, rule, rules
from sicompiler.axes.rules.pointwise import broadcast
from tests.rules.samples import sample_of

pytestmark = pytest.mark.pure


aten, ours = torch.ops.aten, torch.ops.sicompiler

Row = tuple[OpOverload, list[Any], str]


def t(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def n(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape)


sdpa, to_end = aten.scaled_dot_product_attention.default, 2**63 - 1

ROWS: list[Row] = [
    # pointwise
    (aten.add.Tensor, [t(2, 3, 4), t(3, 4)], "([a, b, c], [b, c]) -> ([a, b, c])"),
    (aten.mul.Tensor, [t(2, 3, 4), t(2, 1, 4)], "([a, b, c], [a, 1, c]) -> ([a, b, c])"),
    (aten.mul.Tensor, [t(2, 1), t(1, 3)], "([a, 1], [1, b]) -> ([a, b])"),
    (aten.silu.default, [t(2, 3)], "([a, b]) -> ([a, b])"),
    (aten.where.self, [n(2, 3).bool(), t(2, 3), t()], "([b], [a, b], []) -> ([a, b])"),
    (aten.to.dtype, [t(2, 3), torch.float32], "([a, b]) -> ([a, b])"),
    (aten.type_as.default, [t(2, 3), t(5, 4, 3)], "([a, b], [c, d, b]) -> ([a, b]) whole={c, d}"),
    (aten.view.dtype, [t(2, 3), torch.int64], "([a, b]) -> ([a, b])"),
    (aten.view.dtype, [t(2, 3), torch.int32], "([a, b]) -> ([c, d]) whole={a, b, c, d}"),
    (aten.dropout.default, [t(2, 3), 0.5, False], "([a, b]) -> ([a, b])"),
    (aten.dropout.default, [t(2, 3), 0.5, True], "([a, b]) -> ([c, d]) whole={a, b, c, d}"),
    (aten.glu.default, [t(2, 6)], "([a, m b]) -> ([a, b]) whole={m}"),
    # matmul
    (aten.linear.default, [t(2, 3), t(4, 3), t(4)], "([n, i], [o, i], [o]) -> ([n, o]) reduce={i}"),
    (aten.linear.default, [t(2, 5, 3), t(4, 3)], "([a, b, i], [o, i]) -> ([a, b, o]) reduce={i}"),
    (aten.addmm.default, [t(4), t(2, 3), t(3, 4)], "([n], [m, k], [k, n]) -> ([m, n]) reduce={k}"),
    (aten.baddbmm.default, [t(2, 4), t(5, 2, 3), t(5, 3, 4)],
     "([m, n], [b, m, k], [b, k, n]) -> ([b, m, n]) reduce={k}"),
    (aten.bmm.default, [t(5, 2, 3), t(5, 3, 4)], "([b, m, k], [b, k, n]) -> ([b, m, n]) reduce={k}"),
    (aten.matmul.default, [t(5, 2, 3), t(3, 4)], "([a, m, k], [k, n]) -> ([a, m, n]) reduce={k}"),
    (aten.matmul.default, [t(2, 3), t(3)], "([m, k], [k]) -> ([m]) reduce={k}"),
    (aten.dot.default, [t(3), t(3)], "([k], [k]) -> ([]) reduce={k}"),
    (aten.mm.default, [t(2, 3), t(3, 4)], "([m, k], [k, n]) -> ([m, n]) reduce={k}"),
    (aten.mv.default, [t(2, 3), t(3)], "([m, k], [k]) -> ([m]) reduce={k}"),
    (aten.outer.default, [t(2), t(3)], "([m], [n]) -> ([m, n])"),
    (aten.einsum.default, ["b i d, b j d -> b i j", [t(2, 3, 4), t(2, 5, 4)]],
     "([b, i, d], [b, j, d]) -> ([b, i, j]) reduce={d}"),
    (aten.einsum.default, ["ij,jk", [t(2, 3), t(3, 4)]], "([i, j], [j, k]) -> ([i, k]) reduce={j}"),
    (aten.einsum.default, ["ij,ik,il->jkl", [t(2, 3), t(2, 4), t(2, 5)]],
     "([i, j], [i, k], [i, l]) -> ([j, k, l]) reduce={i}"),
    (aten.einsum.default, ["ij,jk,kl->il", [t(2, 3), t(3, 4), t(4, 5)]],
     "([i, j], [j, k], [k, l]) -> ([i, l]) whole={j, k}"),
    (aten.einsum.default, ["...i->...", [t(2, 3)]], "([a, b]) -> ([c]) whole={a, b, c}"),
    (aten.einsum.default, ["ii->i", [t(3, 3)]], "([a, b]) -> ([c]) whole={a, b, c}"),
    # conv
    (aten.conv2d.default, [t(2, 3, 5, 6), t(4, 3, 3, 3), t(4), [1, 1], [1, 1]],
     "([n, ci, h, w], [co, ci, kh, kw], [co]) -> ([n, co, h, w]) reduce={ci} whole={kh, kw}"
     " window={h: k3 s1 p1, w: k3 s1 p1}"),
    (aten.conv2d.default, [t(2, 3, 5, 6), t(4, 3, 1, 1)],
     "([n, ci, h, w], [co, ci, 1, 1]) -> ([n, co, h, w]) reduce={ci}"),
    (aten.conv2d.default, [t(2, 3, 4, 6), t(4, 3, 2, 2), None, [2, 2]],
     "([n, ci, h kh, w kw], [co, ci, kh, kw]) -> ([n, co, h, w]) reduce={ci} whole={kh, kw}"),
    (aten.conv2d.default, [t(2, 3, 4, 6), t(4, 3, 3, 3), None, [2, 2], [1, 1]],
     "([n, ci, h, w], [co, ci, kh, kw]) -> ([n, co, h, w]) reduce={ci} whole={kh, kw}"
     " window={h: k3 s2 p1, w: k3 s2 p1}"),
    (aten.conv2d.padding, [t(2, 3, 5, 6), t(4, 3, 2, 1), None, [1, 1], "same"],
     "([n, ci, h, w], [co, ci, kh, 1]) -> ([n, co, h, w]) reduce={ci} whole={kh} window={h: k2 s1 p0,1}"),
    (aten.conv1d.default, [t(2, 6, 5), t(4, 3, 1), t(4), [1], [0], [1], 2],
     "([n, g ci, l], [g co, ci, 1], [g co]) -> ([n, g co, l]) reduce={ci} whole={co}"),
    (aten.conv3d.default, [t(2, 3, 7, 5, 6), t(4, 3, 3, 1, 1), None, [1] * 3, [0] * 3, [2, 1, 1]],
     "([n, ci, t, h, w], [co, ci, kt, 1, 1]) -> ([n, co, t, h, w]) reduce={ci} whole={kt} window={t: k3 s1 p0 d2}"),
    (aten.conv_transpose1d.default, [t(2, 3, 5), t(3, 4, 2), t(4), [2]],
     "([n, ci, l], [ci, co, kl], [co]) -> ([n, co, l kl]) reduce={ci} whole={kl}"),
    (aten.conv_transpose1d.default, [t(2, 3, 5), t(3, 4, 3)],
     "([n, ci, l], [ci, co, kl]) -> ([n, co, l_out]) reduce={ci} whole={kl, l, l_out}"),
    # attention
    (sdpa, [t(2, 3, 5, 4), t(2, 3, 6, 4), t(2, 3, 6, 7)],
     "([b, h, q, d], [b, h, k, d], [b, h, k, e]) -> ([b, h, q, e]) whole={k, d}"),
    (sdpa, [t(2, 3, 5, 4), t(2, 3, 6, 4), t(2, 3, 6, 4), t(2, 1, 1, 6)],
     "([b, h, q, d], [b, h, k, d], [b, h, k, e], [b, 1, 1, k]) -> ([b, h, q, e]) whole={k, d}"),
    (sdpa, [t(2, 5, 4), t(2, 6, 4), t(2, 6, 4), None, 0.0, True],
     "([b, q, d], [b, k, d], [b, k, e]) -> ([b, q, e]) whole={q, k, d}"),
    (sdpa, [t(2, 6, 5, 4), t(2, 3, 6, 4), t(2, 3, 6, 4)],
     "([b, hk g, q, d], [b, hk, k, d], [b, hk, k, e]) -> ([b, hk g, q, e]) whole={k, d}"),
    # norm
    (aten.group_norm.default, [t(2, 6, 4, 5), 3, t(6), t(6)],
     "([n, g c, h, w], [g c], [g c]) -> ([n, g c, h, w]) stats={c, h, w}"),
    (aten.group_norm.default, [t(2, 6, 4), 1], "([n, c, l]) -> ([n, c, l]) stats={c, l}"),
    (ours.group_stats.default, [t(2, 6, 4, 5), 3],
     "([n, g c, h, w]) -> ([n, g, moment]) merge={c, h, w} whole={moment}"),
    (ours.group_apply.default, [t(2, 6, 4), t(2, 3, 3), t(6), t(6), 1e-5],
     "([n, g c, l], [n, g, moment], [g c], [g c]) -> ([n, g c, l]) whole={moment}"),
    (aten.layer_norm.default, [t(2, 3, 4), [4], t(4), t(4)], "([a, b, c], [c], [c]) -> ([a, b, c]) whole={c}"),
    (aten.native_layer_norm.default, [t(2, 3), [3], None, None, 1e-5],
     "([a, b]) -> ([a, b], [a, 1], [a, 1]) whole={b}"),
    (aten.rms_norm.default, [t(2, 3), [3], t(3)], "([a, b], [b]) -> ([a, b]) whole={b}"),
    (aten.batch_norm.default, [t(2, 3, 4), t(3), t(3), t(3), t(3), False, 0.1, 1e-5, False],
     "([n, c, l], [c], [c], [c], [c]) -> ([n, c, l])"),
    (aten.instance_norm.default, [t(2, 3, 4), None, None, None, None, True, 0.1, 1e-5, False],
     "([n, c, l]) -> ([n, c, l]) stats={l}"),
]  # fmt: skip

SHAPES: list[Row] = [
    # shape
    (aten.reshape.default, [t(6, 4), [2, 3, 4]], "([a b, c]) -> ([a, b, c])"),
    (aten.view.default, [t(2, 3, 4), [6, -1]], "([a, b, c]) -> ([a b, c])"),
    (aten.view.default, [t(6, 4), [4, 6]], "([a b, c d]) -> ([a e, f d]) whole={b, c, e, f}"),
    (aten.reshape.default, [t(2, 3, 5), [3, 2, 5]], "([a, b, c]) -> ([d, e, c]) whole={a, b, d, e}"),
    (aten.reshape_as.default, [t(6), t(2, 3)], "([a b], [a, b]) -> ([a, b])"),
    (aten.flatten.using_ints, [t(2, 3, 4), 1], "([a, b, c]) -> ([a, b c])"),
    (aten.unflatten.int, [t(2, 6), 1, [3, 2]], "([a, b c]) -> ([a, b, c])"),
    (aten.unsqueeze.default, [t(2, 3), 1], "([a, b]) -> ([a, 1, b])"),
    (aten.squeeze.dim, [t(2, 1, 3), 1], "([a, 1, c]) -> ([a, c])"),
    (aten.squeeze.dim, [t(2, 1, 3), 0], "([a, 1, c]) -> ([a, 1, c]) whole={a}"),
    (aten.squeeze.default, [t(2, 1, 3)], "([a, 1, c]) -> ([a, c]) whole={a, c}"),
    (aten.permute.default, [t(2, 3, 4), [2, 0, 1]], "([a, b, c]) -> ([c, a, b])"),
    (aten.transpose.int, [t(2, 3, 4), 1, -1], "([a, b, c]) -> ([a, c, b])"),
    (aten.movedim.int, [t(2, 3, 4), 0, -1], "([a, b, c]) -> ([b, c, a])"),
    (aten.expand.default, [t(2, 1), [5, -1, 3]], "([b, 1]) -> ([a, b, c])"),
    (aten.repeat.default, [t(2, 3), [4, 1, 5]], "([b, c]) -> ([r0, b, r2 c]) whole={r2}"),
    (aten.repeat.default, [t(1, 3), [4, 1]], "([1, b]) -> ([r0, b])"),
    (aten.repeat_interleave.self_int, [t(2, 3), 4, 0], "([a, b]) -> ([a r, b]) whole={r}"),
    (aten.repeat_interleave.self_int, [t(2, 3), 4], "([a, b]) -> ([a b r]) whole={r}"),
    (aten.t.default, [t(2, 3)], "([a, b]) -> ([b, a])"),
    (aten.view_as_real.default, [torch.view_as_complex(t(3, 2))], "([a]) -> ([a, b]) whole={b}"),
    (aten.view_as_complex.default, [t(3, 2)], "([a, b]) -> ([a]) whole={b}"),
    # joins
    (aten.cat.default, [[t(2, 3), t(2, 4)], 1], "([a, c0], [a, c1]) -> ([a, c]) whole={c0, c1, c}"),
    (aten.stack.default, [[t(2, 3), t(2, 3)], -1], "([a, b], [a, b]) -> ([a, b, s]) whole={s}"),
    (aten.meshgrid.default, [[t(2), t(3)]], "([a], [b]) -> ([a, b], [a, b])"),
    (aten.select_scatter.default, [t(2, 3), t(2), 1, 0], "([a, s], [a]) -> ([a, s]) whole={s}"),
    (aten.slice_scatter.default, [t(2, 3), t(2, 2), 1, 1], "([a, s], [a, p]) -> ([a, s]) whole={s, p}"),
    # splits
    (aten.chunk.default, [t(2, 6), 2, 1], "([a, m s]) -> ([a, s], [a, s]) whole={m}"),
    (aten.chunk.default, [t(5), 2], "([s]) -> ([s0], [s1]) whole={s, s0, s1}"),
    (aten.split.Tensor, [t(6, 3), 2], "([m s, b]) -> ([s, b], [s, b], [s, b]) whole={m}"),
    (aten.unbind.int, [t(2, 3)], "([s, b]) -> ([b], [b]) whole={s}"),
    (aten.select.int, [t(2, 3), 1, 0], "([a, s]) -> ([a]) whole={s}"),
    (aten.slice.Tensor, [t(2, 3), 1, 0, to_end], "([a, b]) -> ([a, b])"),
    (aten.slice.Tensor, [t(2, 4), 1, 1, to_end], "([a, s]) -> ([a, t]) whole={s, t}"),
    (aten.slice.Tensor, [t(2, 6), 1, 1, to_end, 2], "([a, t m]) -> ([a, t]) whole={m}"),
    (aten.narrow.default, [t(2, 3), 1, 0, 2], "([a, s]) -> ([a, t]) whole={s, t}"),
    # creation
    (aten.zeros.default, [[2, 3]], "() -> ([a, b])"),
    (aten.new_full.default, [t(4), [2, 3], 0.5], "([o0]) -> ([a, b]) whole={o0}"),
    (aten.arange.default, [3], "() -> ([a]) whole={a}"),
    (aten.ones_like.default, [t(2, 3)], "([a, b]) -> ([a, b])"),
    # reductions
    (aten.sum.dim_IntList, [t(2, 3, 4), [1, 2]], "([a, b, c]) -> ([a]) reduce={b, c}"),
    (aten.sum.default, [t(2, 3)], "([a, b]) -> ([]) reduce={a, b}"),
    (aten.mean.dim, [t(2, 3), [-1], True], "([a, b]) -> ([a, 1]) whole={b}"),
    (aten.var_mean.correction, [t(2, 3), [1]], "([a, b]) -> ([a], [a]) whole={b}"),
    (aten.linalg_vector_norm.default, [t(2, 3), 2, [1], True], "([a, b]) -> ([a, 1]) whole={b}"),
    # along one dim
    (aten.softmax.int, [t(2, 3), -1], "([a, b]) -> ([a, b]) whole={b}"),
    (aten.flip.default, [t(2, 3), [0]], "([a, b]) -> ([a, b]) whole={a}"),
    (aten.roll.default, [t(2, 3), [1]], "([a, b]) -> ([a, b]) whole={a, b}"),
    (aten.topk.default, [t(2, 5), 3], "([a, s]) -> ([a, k], [a, k]) whole={s, k}"),
    (aten.triu.default, [t(2, 3, 4)], "([a, b, c]) -> ([a, b, c]) whole={b, c}"),
    # look-ups
    (aten.embedding.default, [t(5, 4), n(5, 2, 3)], "([v, e], [a, b]) -> ([a, b, e]) whole={v}"),
    (aten.gather.default, [t(2, 5), 1, n(5, 2, 3)], "([a, b_in], [a, b]) -> ([a, b]) whole={b_in}"),
    (aten.index_select.default, [t(2, 5), 1, n(5, 3)], "([a, s], [k]) -> ([a, k]) whole={s}"),
    (aten.index.Tensor, [t(2, 5, 4), [None, n(5, 3)]], "([b, s1, d], [a]) -> ([b, a, d]) whole={s1}"),
    (aten.index.Tensor, [t(2, 5, 4), [n(2, 3), None, n(4, 3)]], "([s0, c, s2], [a], [a]) -> ([a, c]) whole={s0, s2}"),
    (aten.index.Tensor, [t(3), [torch.tensor([True, False, True])]], "([a], [b]) -> ([c]) whole={a, b, c}"),
    # padding and resampling
    (aten.pad.default, [t(2, 3, 4), [1, 1, 0, 0]], "([a, b, c]) -> ([a, b, c]) window={c: k1 s1 p1}"),
    (aten.pad.default, [t(2, 3, 4), [1, 1], "reflect"], "([a, b, c]) -> ([a, b, c_out]) whole={c, c_out}"),
    (aten.constant_pad_nd.default, [t(2, 3), [-1, 0]], "([a, b]) -> ([a, b_out]) whole={b, b_out}"),
    (aten.replication_pad3d.default, [t(1, 2, 3, 4, 5), [0, 0, 0, 0, 2, 0]],
     "([1, b, c, d, e]) -> ([1, b, c, d, e]) window={c: k1 s1 p2,0}"),
    (aten.upsample_nearest2d.vec, [t(2, 3, 4, 5), None, [2.0, 1.0]],
     "([n, c, h, w]) -> ([n, c, h rh, w]) whole={rh}"),
    (aten.upsample_nearest1d.vec, [t(2, 3, 4), [6], None], "([n, c, l]) -> ([n, c, l_out]) whole={l, l_out}"),
    (aten.upsample_nearest1d.vec, [t(2, 3, 4), [4 * 41], None], "([n, c, l]) -> ([n, c, l_out]) whole={l, l_out}"),
    (aten.upsample_bilinear2d.vec, [t(2, 3, 4, 5), [8, 10], False, None],
     "([a, b, h, w]) -> ([a, b, h_out, w_out]) whole={h, w, h_out, w_out}"),
    (aten.avg_pool2d.default, [t(2, 3, 4, 6), [2, 2]], "([n, c, h kh, w kw]) -> ([n, c, h, w]) whole={kh, kw}"),
    (aten.max_pool1d.default, [t(2, 3, 6), [3], [2], [1]], "([n, c, l]) -> ([n, c, l]) window={l: k3 s2 p1}"),
    (aten.pixel_unshuffle.default, [t(3, 4, 6), 2], "([c, h rh, w rw]) -> ([c rh rw, h, w]) whole={rh, rw}"),
    (aten.pixel_shuffle.default, [t(2, 12, 3, 4), 2], "([n, c rh rw, h, w]) -> ([n, c, h rh, w rw]) whole={rh, rw}"),
]  # fmt: skip


ALL = [*ROWS, *SHAPES]


@pytest.mark.parametrize(("target", "args", "form"), ALL, ids=[f"{i}-{row[0]}" for i, row in enumerate(ALL)])
def test_printed_form(target: OpOverload, args: list[Any], form: str) -> None:
    options = {"enable_gqa": True} if "hk g" in form else {}
    assert str(sample_of(target, *args, **options).map) == form


def test_one_call_of_every_rule_is_printed() -> None:
    """A new rule function needs a row; overloads of one function share theirs."""
    printed = {rules()[target] for target, _, _ in ALL}
    shared = {found.__name__ for found in rules().values() if found.__module__.startswith("sicompiler.axes.rules")}
    missing = shared - {found.__name__ for found in printed}
    assert not missing, f"no printed form of {sorted(missing)}"


def test_an_operator_without_a_rule_has_no_map() -> None:
    assert factor_map(op_call(aten.nonzero.default, (), {}, ())) is None


def test_a_second_rule_for_an_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="has an axis rule already: broadcast"):

        @rule(aten.add.Tensor)
        def again(call: OpCall) -> Any:
            return broadcast(call)
