"""The operators our passes insert into graphs, with plain eager semantics beside them.

Importing this package registers them with torch, as `torch.ops.sicompiler.<name>.default`:

| operator | what |
|---|---|
| `group_stats(x, groups)` | count, mean and M2 of each group of channels: the first pass of GroupNorm |
| `merge_stats_(acc, part)` | adds the statistics of one slice to those of the slices before |
| `group_apply(x, stats, weight, bias, eps)` | the second pass of GroupNorm: scale and shift |
| `copy_slice(whole, dim, outer, inner, start, length)` | one slice of a whole value, as a dense tensor |
| `take_over(source, planned, size, stride)` | memory of a value that dies in a loop, for what is written over it |
| `in_order(part, like)` | a slice whose dims of one entry have the strides of the order of the whole |
| `write_slice_(whole, part, dim, outer, inner, start, length)` | one slice into a whole value |
| `spill(on_device)`, `fetch(offloaded, device)` | a whole value into offload memory, and back |
| `fetch_slice(whole, ..., device)`, `store_slice_(whole, part, ...)` | one slice out of offload memory, and into it |
| `pad_slice(x, dim, before, behind, value)` | the padding of a window, where a slice touches a true border |
| `pad_copy(x, pad, value, channels_last)` | a padding of the model, laid out alike between the borders and at them |

`reach`, `missing_before` and `missing_behind` are functions of integers: where a slice with its halo begins and ends.
`sliced_loop` and `streamed_loop` are plain functions: targets of `call_function` nodes whose first argument is the
body, a GraphModule. So are `offloaded_tensor`, which makes an offloaded buffer, and `wait_loads` and `wait_stores`.

Where a slice can be a plain view (`outer == 1`) use `aten.narrow.default(whole, dim, start * inner, length * inner)`.
Whole values are made before a loop by `aten.new_empty_strided.default(like, size, stride, dtype=...)`, on the device of
`like`, and accumulators of statistics by `aten.new_zeros.default(like, [n, groups, 3], dtype=torch.float64)`; both take
about 5 us. A rewritten graph whose statistics no loop parted should call `aten.group_norm`: it is one pass less.
"""

from __future__ import annotations

from sicompiler.ops.groupnorm import group_apply, group_stats, merge_stats_
from sicompiler.ops.halo import missing_before, missing_behind, pad_copy, pad_slice, reach
from sicompiler.ops.loop import sliced_loop, streamed_loop
from sicompiler.ops.mapped import is_offloaded, offloaded_tensor
from sicompiler.ops.offloaded import fetch, fetch_slice, spill, store_slice_, wait_loads, wait_stores
from sicompiler.ops.slices import copy_slice, dense_strides, in_order, write_slice_

__all__ = [
    "copy_slice",
    "dense_strides",
    "fetch",
    "fetch_slice",
    "group_apply",
    "group_stats",
    "in_order",
    "is_offloaded",
    "merge_stats_",
    "missing_before",
    "missing_behind",
    "offloaded_tensor",
    "pad_copy",
    "pad_slice",
    "reach",
    "sliced_loop",
    "spill",
    "store_slice_",
    "streamed_loop",
    "wait_loads",
    "wait_stores",
    "write_slice_",
]
