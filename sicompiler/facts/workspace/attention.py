"""Workspace of attention: on the CPU, measured as described in `workspace/cpu.py`, and without a fused kernel."""

from __future__ import annotations

import math

import torch

from sicompiler.facts.storages import TensorFact
from sicompiler.facts.workspace.layout import KernelCall
from sicompiler.facts.workspace.onednn import HALF, has_amx


def attention(call: KernelCall) -> int:
    """Flash kernel: logsumexp of all queries, and per thread a block of scores; else what `unfused` takes.

    With A bytes per accumulator (float32 for half dtypes), aten/src/ATen/native/cpu/FlashAttentionKernel.cpp makes
    b * h * q * A, and per thread (bq * bk + 2 * bq + bq * d) * A and, for half dtypes, bq * bk * 2; bk is at most 512,
    bq is 32, from 192 queries on 64, from 768 on 256. With AMX it packs keys and values: see `_packed`. A bool mask
    is converted to the dtype of the queries, as large as it is after `expand`.
    The other path is taken for other than 4 dims, value heads of another size, a mask of 3 dims or a last stride
    other than 1.
    """
    query, key, value = call.operands[:3]
    mask = call.operands[3] if len(call.operands) > 3 else None
    size = 4 if query.dtype in HALF else query.dtype.itemsize
    flash = (
        all(len(t.shape) == 4 and t.stride[-1] == 1 for t in (query, key, value))
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and (mask is None or len(mask.shape) in (2, 4))
    )
    if not flash:
        return unfused(call)
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    block = min(256 if queries >= 768 else 64 if queries >= 192 else 32, queries)
    scores = block * min(keys, 512)
    per_thread = (scores + 2 * block + block * width) * size + (2 * scores if query.dtype in HALF else 0)
    logsumexp = math.prod(query.shape[:-1]) * size
    return _converted(mask, query) + logsumexp + torch.get_num_threads() * per_thread + _packed(query, key, block)


def _converted(mask: TensorFact | None, query: TensorFact) -> int:
    """Bytes of a bool mask in the dtype of the queries."""
    return mask.numel * query.dtype.itemsize if mask is not None and mask.dtype == torch.bool else 0


def unfused(call: KernelCall) -> int:
    """Attention as products and a softmax (`_scaled_dot_product_attention_math`): the whole matrix of scores twice.

    Its peak: scaled queries (in half dtypes: and float32 copies of q, k, v), scores, their softmax, and a bool of their
    size.
    """
    operands, results = call.operands, call.results
    query, key, value = operands[:3]
    size = 4 if query.dtype in HALF else query.dtype.itemsize
    queries, keys, rows = query.shape[-2], key.shape[-2], math.prod(query.shape[:-1])
    copies = query.numel * size
    if query.dtype in HALF:
        copies += (query.numel + key.numel + value.numel) * size
    matrix = rows * keys
    last = (query.numel + 2 * key.numel) * size
    summed = results[0].numel * size
    if query.dtype in HALF:  # the softmax and the result once more
        summed += 2 * matrix + results[0].nbytes
    last = max(last, summed + (value.numel * size if value.stride[-1] != 1 else 0))
    copies += queries * keys * size if call["is_causal"] else 0  # a mask
    if key.shape[:-2] != query.shape[:-2] and call["enable_gqa"]:  # keys and values are repeated
        copies += (key.numel + value.numel) * size * query.shape[-3] // key.shape[-3]
    peak = copies + max(2 * matrix * size + matrix + rows, matrix * size + last) + 64
    mask = operands[3] if len(operands) > 3 else None
    return _converted(mask, query) + max(peak - results[0].nbytes, 0)


def _packed(query: TensorFact, key: TensorFact, block: int) -> int:
    """Copies of all keys and values in the layout of AMX tiles, and per thread a transposed block of keys.

    Made from 64 queries and 64 keys on (float16: 16, not measured), if a thread multiplies each of them with 4 queries
    or more.
    """
    if not has_amx(query.dtype):
        return 0
    least, worth = (64, 4) if query.dtype == torch.bfloat16 else (16, 1)
    threads, heads = torch.get_num_threads(), math.prod(query.shape[:2])
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    blocks = -(-heads * -(-queries // block) // threads)
    if min(queries, keys) < least or blocks * block < worth * heads:
        return 0
    even, odd_keys = width + width % 2, keys % 2
    scores = torch.get_num_threads() * block * 2 if odd_keys and keys < 512 else 0  # rows of scores are made even
    padded = 2 * (heads * (keys * even + (keys + odd_keys) * width) + threads * even * min(keys, 512))
    return padded + scores + (2 * threads * block * even if width % 2 else 0)
