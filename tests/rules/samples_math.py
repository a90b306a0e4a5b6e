"""Sample calls of products, convolutions, attention, norms and reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.rules.draw import Args, Draw, sampler

aten = torch.ops.aten

EQUATIONS = (
    "bhqd,bhkd->bhqk",
    "b i d, b j d -> b i j",
    "ij,jk",
    "ij,ik,il->jkl",
    "ijk->kj",
    "ij,jk,kl->il",
    "ii->i",
    "bcfhw,oc->bofhw",
    "bhqk,bkhd->bqhd",
)


@sampler(aten.addmm.default)
def _addmm(draw: Draw, target: OpOverload) -> Args:
    m, k, n = draw.size(), draw.size(), draw.size()
    added = draw.tensor(*draw.shrunk([m, n]))
    return [added, draw.tensor(m, k), draw.tensor(k, n)], {"beta": 0.5, "alpha": 2.0}


@sampler(aten.baddbmm.default)
def _baddbmm(draw: Draw, target: OpOverload) -> Args:
    b, m, k, n = (draw.size() for _ in range(4))
    return [draw.tensor(*draw.shrunk([b, m, n])), draw.tensor(b, m, k), draw.tensor(b, k, n)], {}


@sampler(aten.bmm.default)
def _bmm(draw: Draw, target: OpOverload) -> Args:
    b, m, k, n = (draw.size() for _ in range(4))
    return [draw.tensor(b, m, k), draw.tensor(b, k, n)], {}


@sampler(aten.dot.default)
def _dot(draw: Draw, target: OpOverload) -> Args:
    k = draw.size(2)
    return [draw.tensor(k), draw.tensor(k)], {}


@sampler(aten.einsum.default)
def _einsum(draw: Draw, target: OpOverload) -> Args:
    equation = draw.pick(EQUATIONS)
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = {letter: draw.size() for letter in sorted(set("".join(terms)))}
    return [equation, [draw.tensor(*(sizes[letter] for letter in term)) for term in terms]], {}


@sampler(aten.linear.default)
def _linear(draw: Draw, target: OpOverload) -> Args:
    *rows, i = draw.shape()
    o = draw.size()
    return [draw.tensor(*rows, i), draw.tensor(o, i), draw.pick([None, draw.tensor(o)])], {}


@sampler(aten.matmul.default)
def _matmul(draw: Draw, target: OpOverload) -> Args:
    batch = draw.shape(0, 2)
    m, k, n = draw.size(), draw.size(), draw.size()
    left = draw.pick([[k], [*draw.shrunk(batch), m, k], [*batch, m, k]])
    right = draw.pick([[k], [*draw.shrunk(batch), k, n], [*batch, k, n]])
    return [draw.tensor(*left), draw.tensor(*right)], {}


@sampler(aten.mm.default)
def _mm(draw: Draw, target: OpOverload) -> Args:
    m, k, n = draw.size(), draw.size(), draw.size()
    return [draw.tensor(m, k), draw.tensor(k, n)], {}


@sampler(aten.mv.default)
def _mv(draw: Draw, target: OpOverload) -> Args:
    m, k = draw.size(), draw.size()
    return [draw.tensor(m, k), draw.tensor(k)], {}


@sampler(aten.outer.default)
def _outer(draw: Draw, target: OpOverload) -> Args:
    return [draw.tensor(draw.size()), draw.tensor(draw.size())], {}


def _space(target: OpOverload) -> int:
    return next(int(mark[0]) for mark in ("1d", "2d", "3d") if mark in str(target))


@sampler(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@sampler(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def _conv(draw: Draw, target: OpOverload) -> Args:
    count, groups, ci, co = _space(target), draw.pick([1, 1, 2]), draw.size(1, 3), draw.size(1, 3)
    # kernel, stride, padding, dilation: pointwise, ordinary, downsampling, patches, dilated.
    kinds = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (2, 2, 0, 1), (2, 1, 1, 2)]
    chosen = [draw.pick(kinds) for _ in range(count)]
    if target._overloadname == "padding":
        chosen = [(kernel, 1, 0, dilation) for kernel, _, _, dilation in chosen]
    kernel, stride, padding, dilation = (list(values) for values in zip(*chosen, strict=True))
    space = [k * draw.size(2, 3) for k in kernel]
    batch = draw.pick([[draw.size()], [draw.size()], []])
    bias = draw.pick([None, draw.tensor(groups * co)])
    pads = draw.pick(["same", "valid"]) if target._overloadname == "padding" else padding
    source, weight = draw.tensor(*batch, groups * ci, *space), draw.tensor(groups * co, ci, *kernel)
    return [source, weight, bias, stride, pads, dilation, groups], {}


@sampler(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _conv_transpose(draw: Draw, target: OpOverload) -> Args:
    count, groups, ci, co = _space(target), draw.pick([1, 1, 1, 2]), draw.size(1, 3), draw.size(1, 3)
    chosen = [draw.pick([(1, 1, 0), (2, 2, 0), (3, 2, 1)]) for _ in range(count)]
    kernel, stride, padding = (list(values) for values in zip(*chosen, strict=True))
    source = draw.tensor(draw.size(), groups * ci, *(draw.size(2, 4) for _ in range(count)))
    weight = draw.tensor(groups * ci, co, *kernel)
    return [source, weight, draw.pick([None, draw.tensor(groups * co)]), stride, padding, [0], groups], {}


@sampler(aten.scaled_dot_product_attention.default)
def _attention(draw: Draw, target: OpOverload) -> Args:
    b, h, g, q, k, d, e = draw.size(1, 3), draw.size(1, 3), draw.size(1, 3), *(draw.size(2) for _ in range(4))
    if draw.flag():
        query, key, value = draw.tensor(b, h, q, d), draw.tensor(b, h, k, d), draw.tensor(b, h, k, e)
        if draw.flag():
            return [query, key, value], {"is_causal": True}
        mask = draw.pick([None, draw.tensor(*draw.shrunk([b, h, q]), k), draw.tensor(q, k)])
        return [query, key, value, mask], {}
    if draw.flag():
        return [draw.tensor(b, q, d), draw.tensor(b, k, d), draw.tensor(b, k, e)], {}
    return [draw.tensor(b, h * g, q, d), draw.tensor(b, h, k, d), draw.tensor(b, h, k, d)], {"enable_gqa": True}


def _affine(draw: Draw, *shape: int) -> list[Tensor | None]:
    pair: list[Tensor | None] = [draw.tensor(*shape), draw.tensor(*shape)]
    return draw.pick([pair, [None, None]])  # type: ignore[no-any-return]


@sampler(aten.batch_norm.default)
def _batch_norm(draw: Draw, target: OpOverload) -> Args:
    n, c, *space = draw.shape(2, 5)
    source = draw.tensor(n, c, *space)
    return [source, *_affine(draw, c), draw.tensor(c), draw.unit(c), False, 0.1, 1e-5, False], {}


@sampler(aten.group_norm.default)
def _group_norm(draw: Draw, target: OpOverload) -> Args:
    g, c = draw.size(1, 4), draw.size(1, 3)
    space = [draw.size(2, 4) for _ in range(draw.size(1, 3))]
    return [draw.tensor(draw.size(), g * c, *space), g, *_affine(draw, g * c)], {}


@sampler(aten.instance_norm.default)
def _instance_norm(draw: Draw, target: OpOverload) -> Args:
    n, c, *space = [draw.size(), draw.size(), *(draw.size(2, 4) for _ in range(draw.size(1, 3)))]
    return [draw.tensor(n, c, *space), *_affine(draw, c), None, None, True, 0.1, 1e-5, False], {}


@sampler(aten.layer_norm.default, aten.native_layer_norm.default)
def _layer_norm(draw: Draw, target: OpOverload) -> Args:
    shape = [draw.size(2, 5) for _ in range(draw.size(2, 4))]
    normalised = shape[-draw.size(1, 2) :]
    eps = [1e-5] if target is aten.native_layer_norm.default else []
    return [draw.tensor(*shape), normalised, *_affine(draw, *normalised), *eps], {}


@sampler(aten.rms_norm.default)
def _rms_norm(draw: Draw, target: OpOverload) -> Args:
    shape = [draw.size(2, 5) for _ in range(draw.size(2, 4))]
    normalised = shape[-draw.size(1, 2) :]
    return [draw.tensor(*shape), normalised, draw.pick([None, draw.tensor(*normalised)])], {}


ALL_DIMS = (aten.sum.default, aten.mean.default, aten.prod.default, aten.max.default, aten.min.default)
SOME_DIMS = (
    *(aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default),
    *(aten.var.dim, aten.std.dim, aten.var_mean.dim, aten.std_mean.dim, aten.linalg_vector_norm.default),
    *(aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction),
    *(aten.any.dims, aten.all.dims, aten.norm.ScalarOpt_dim),
)
ONE_DIM = (
    *(aten.prod.dim_int, aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default),
    *(aten.any.dim, aten.all.dim),
)


def _entries(draw: Draw, target: OpOverload, shape: list[int]) -> Tensor:
    # One entry decides `any` and `all`: with more of them every slice would give the same.
    if "any" in str(target) or "all" in str(target):
        decisive = torch.zeros(shape, dtype=torch.bool)
        decisive[tuple(draw.size(0, size - 1) for size in shape)] = True
        return decisive if "any" in str(target) else ~decisive
    return draw.tensor(*shape)


@sampler(*ALL_DIMS, aten.any.default, aten.all.default, aten.norm.Scalar)
def _reduce_all(draw: Draw, target: OpOverload) -> Args:
    return [_entries(draw, target, draw.shape())], {}


@sampler(*SOME_DIMS, *ONE_DIM)
def _reduce(draw: Draw, target: OpOverload) -> Args:
    shape = [draw.size(2, 5) for _ in range(draw.size(1, 4))]
    dim: Any = draw.dim(len(shape))
    if target in SOME_DIMS:
        dim = sorted({dim % len(shape), draw.dim(len(shape)) % len(shape)})
    named: dict[str, Any] = {"dim": dim, "keepdim": draw.flag()}
    required = {"p": 2} if target is aten.norm.ScalarOpt_dim else {}
    named |= {"ord": draw.pick([1, 2])} if target is aten.linalg_vector_norm.default else {}
    return [_entries(draw, target, shape)], required | named


@sampler(torch.ops.sicompiler.group_stats.default)
def _group_stats(draw: Draw, target: OpOverload) -> Args:
    g, c = draw.size(1, 4), draw.size(1, 3)
    return [draw.tensor(draw.size(), g * c, *(draw.size(2, 4) for _ in range(draw.size(1, 3)))), g], {}


@sampler(torch.ops.sicompiler.group_apply.default)
def _group_apply(draw: Draw, target: OpOverload) -> Args:
    (source, groups), _ = _group_stats(draw, target)
    stats = torch.ops.sicompiler.group_stats(source, groups)
    return [source, stats, *_affine(draw, source.shape[1]), 1e-5], {}
