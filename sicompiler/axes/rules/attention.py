"""Attention: batch, heads, queries and the features of the values are free; keys are whole."""

from __future__ import annotations

import torch

from sicompiler.axes.factor_map import FactorMap
from sicompiler.axes.registry import OpCall, rule
from sicompiler.axes.rules.building import aligned, described, letters, opaque

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(call: OpCall) -> FactorMap:
    """`([b, h, q, d], [b, h, k, d], [b, h, k, e]) -> ([b, h, q, e]) whole={k, d}`.

    A causal mask is drawn from the top left corner of (q, k), so q is whole there. With `enable_gqa` the query heads
    are `hk g` and key and value have the heads hk. The mask broadcasts against [b, h, q, k].
    """
    if call["dropout_p"] > 0:
        return opaque(call)
    query, key = call["query"].shape, call["key"].shape
    leading = len(call.results[0].shape) - 2
    batch = {0: [], 1: ["b"], 2: ["b", "h"]}.get(leading) or letters(leading, avoid="hqkde")
    shared = list(batch)
    sizes: dict[str, int] = {}
    if call["enable_gqa"] and key[-3] != query[-3]:
        if call["value"].shape[-3] != key[-3]:
            return opaque(call)
        batch = [*batch[:-1], "hk g"]
        shared = [*batch[:-1], "hk"]
        sizes = {"hk": key[-3], "g": query[-3] // key[-3]}
    labels = [[*batch, "q", "d"], [*shared, "k", "d"], [*shared, "k", "e"]]
    operands = [labels[i][len(labels[i]) - len(call[name].shape) :] for i, name in enumerate(("query", "key", "value"))]
    if call["attn_mask"] is not None:
        operands.append(list(aligned([*batch, "q", "k"], call["attn_mask"])))
    whole = ["q", "k", "d"] if call["is_causal"] else ["k", "d"]
    return described(call, operands, [[*batch, "q", "e"]], sizes=sizes, whole=whole)
