"""Operators by what they need beside their results, where that is one sentence for many of them.

An operator with an axis rule stands here, has a row in the table of its device, or carries torch's `pointwise` tag.
"""

from __future__ import annotations

import torch
from torch._ops import OpOverload

import sicompiler.ops  # noqa: F401  (registers the operators named below)

aten = torch.ops.aten
ops = torch.ops.sicompiler

# Results are views of the operands, or made from nothing, or hold them in another order.
NOTHING: frozenset[OpOverload] = frozenset(
    {
        *(aten._conj.default, aten._unsafe_view.default, aten.alias.default),
        *(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.broadcast_tensors.default),
        *(aten.broadcast_to.default, aten.chunk.default, aten.conj.default, aten.detach.default),
        *(aten.empty.memory_format, aten.movedim.int, aten.movedim.intlist, aten.permute.default, aten.real.default),
        *(aten.empty_like.default, aten.empty_strided.default, aten.expand.default, aten.expand_as.default),
        *(aten.eye.default, aten.eye.m, aten.flip.default, aten.full.default),
        *(aten.full_like.default, aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.linspace.default),
        *(aten.meshgrid.default, aten.meshgrid.indexing),
        *(aten.narrow.default, aten.new_empty.default, aten.new_full.default, aten.new_ones.default),
        *(aten.new_zeros.default, aten.numpy_T.default, aten.ones.default, aten.ones_like.default),
        *(aten.resolve_conj.default, aten.resolve_neg.default, aten.scalar_tensor.default),
        *(aten.imag.default, aten.select.int, aten.slice.Tensor),
        *(aten.split.Tensor, aten.split.default, aten.split.sizes),
        *(aten.split_with_sizes.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
        *(aten.swapaxes.default, aten.swapdims.default, aten.t.default),
        *(aten.tensor_split.indices, aten.tensor_split.sections, aten.transpose.int, aten.unbind.int),
        *(aten.unflatten.int, aten.unsafe_chunk.default, aten.unsafe_split.Tensor, aten.unsqueeze.default),
        *(aten.view.default, aten.view.dtype, aten.view_as.default, aten.view_as_complex.default),
        *(aten.view_as_real.default, aten.zeros.default, aten.zeros_like.default),
        *(ops.copy_slice.default, ops.in_order.default, ops.take_over.default, ops.write_slice_.default),
        *(ops.fetch.default, ops.fetch_slice.default, ops.spill.default, ops.store_slice_.default),
    }
)

# Copies, into another order, shape or dtype, or into the result they are a part of.
COPIES: frozenset[OpOverload] = frozenset(
    {
        *(aten._to_copy.default, aten.clone.default, aten.constant_pad_nd.default, aten.contiguous.default),
        *(aten.copy.default, aten.copy_.default, aten.flatten.using_ints, aten.ravel.default, aten.reshape.default),
        *(aten.reshape_as.default, aten.select_scatter.default, aten.slice_scatter.default, aten.to.device),
        *(aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten.type_as.default),
    }
)

# Pointwise without torch's tag, in some version.
POINTWISE: frozenset[OpOverload] = frozenset(
    {
        *(aten.__and__.Scalar, aten.__and__.Tensor, aten.__or__.Scalar, aten.__or__.Tensor, aten.complex.default),
        *(aten.divide.Tensor, aten.dropout.default, aten.fill.Scalar, aten.fill.Tensor, aten.floor_divide.Scalar),
        *(aten.floor_divide.default, aten.glu.default, aten.hardswish.default, aten.leaky_relu.default),
        *(aten.masked_fill.Tensor, aten.multiply.Scalar, aten.multiply.Tensor, aten.polar.default),
        *(aten.rsub.Tensor, aten.subtract.Tensor),
        *(aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf),
    }
)

# C++ functions that call other operators: what those allocate is followed on meta tensors.
COMPOSITE: frozenset[OpOverload] = frozenset(
    {
        *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
        *(
            aten.avg_pool1d.default,
            aten.max_pool1d.default,
            aten.argsort.default,
            aten.argsort.stable,
            aten.batch_norm.default,
            aten.einsum.default,
        ),
        *(aten.fft_fftn.default, aten.fft_fftshift.default, aten.fft_ifftn.default, aten.fft_ifftshift.default),
        *(aten.instance_norm.default, aten.isclose.default, aten.isfinite.default, aten.norm.Scalar),
        *(aten.norm.ScalarOpt_dim, aten.outer.default, aten.pad.default),
        *(aten.tile.default,),
    }
)

# Many entries in, few out.
REDUCTIONS: frozenset[OpOverload] = frozenset(
    {
        *(aten.all.default, aten.all.dim, aten.all.dims, aten.amax.default, aten.amin.default, aten.any.default),
        *(aten.any.dim, aten.any.dims, aten.argmax.default, aten.argmin.default, aten.linalg_vector_norm.default),
        *(aten.logsumexp.default, aten.max.default, aten.max.dim, aten.mean.default, aten.mean.dim),
        *(aten.min.default, aten.min.dim, aten.prod.default, aten.prod.dim_int, aten.std.correction, aten.std.dim),
        *(aten.std_mean.correction, aten.std_mean.dim, aten.sum.default, aten.sum.dim_IntList),
        *(aten.var.correction, aten.var.dim, aten.var_mean.correction, aten.var_mean.dim),
    }
)
