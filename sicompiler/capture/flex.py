"""`flex_attention` as what it computes where nobody compiles it, in plain operators.

Uncompiled, `torch.nn.attention.flex_attention` runs its dense definition: scores, the model's own `score_mod` and
`mask_mod` for all pairs of positions, softmax, values. To a trace it is one operator with two graphs of its own.
Written in plain operators it is like any other attention: sliced over batch, heads and queries by the rules there are,
as far as those graphs allow, with the memory that each operator takes. The blocks of a block mask only say what a
compiled kernel may skip; the dense definition does not read them.

A body is written for single positions and is given all of them at once: index tensors of shapes (B, 1, 1, 1) to
(1, 1, 1, K), which broadcast. That is the same where each of its operators works entry by entry, or looks up single
entries of a table; a body with any other operator is refused.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from sicompiler.capture.elsewhere import elsewhere
from sicompiler.capture.reasons import line_being_run
from sicompiler.errors import CaptureError

aten = torch.ops.aten

_DIRECT = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"  # torch's own switch: call the operator without TorchDynamo
_OPERATOR = "flex_attention_hop"  # what it calls then
_COPIES = {
    aten._to_copy.default,
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
}
_lock = threading.RLock()


@contextlib.contextmanager
def dense_flex_attention() -> Iterator[None]:
    """Have an uncompiled `flex_attention` run in plain operators, for the time of a trace."""
    from torch.nn.attention import flex_attention as module  # here, as it imports TorchDynamo

    with _lock:
        before: dict[str, Any] = {name: getattr(module, name) for name in (_DIRECT, _OPERATOR) if hasattr(module, name)}
        for name in before:
            setattr(module, name, {_DIRECT: True, _OPERATOR: _dense}[name])
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(module, name, value)


def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What torch's `sdpa_dense` computes: the output, and the logarithm and maximum of the scores in base 2.

    Args:
        query: of shape (B, H, Q, E).
        key: of shape (B or 1, H / g, K, E).
        value: of shape (B or 1, H / g, K, V).
        score_mod: takes a score and four positions.
        block_mask: ends in the function that takes four positions.
        scale: of the scores.
        kernel_options: for a compiled kernel.
    """
    batch, heads, queries = query.shape[:3]
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = (torch.repeat_interleave(x, groups, dim=1) for x in (key, value))
    key, value = (x.expand(batch, *x.shape[1:]) for x in (key, value))
    precision = torch.float64 if query.dtype == torch.float64 else torch.float32
    scores = (query.to(precision) @ key.to(precision).transpose(-2, -1)) * scale
    sizes = (batch, heads, queries, key.shape[2])
    positions = [
        torch.arange(size, device=query.device).view([-1 if d == dim else 1 for d in range(4)])
        for dim, size in enumerate(sizes)
    ]
    allowed = _for_all(block_mask[-1], positions)
    scores = torch.where(allowed, _for_all(score_mod, [scores, *positions]), -math.inf)
    hidden = torch.all(scores == -math.inf, dim=-1, keepdim=True)
    weights = torch.where(hidden, 0.0, torch.softmax(scores, dim=-1))
    out = weights.to(query.dtype) @ value.to(query.dtype)
    total = torch.where(hidden.squeeze(-1), -math.inf, scores.logsumexp(dim=-1))
    return _laid_out_like(query, out), total / math.log(2), scores.amax(dim=-1) / math.log(2)


def _laid_out_like(query: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The output with its dims in memory in the order of those of the query, as the operator gives it."""
    order = sorted(range(out.dim()), key=query.stride, reverse=True)
    return out.permute(order).contiguous().permute([order.index(d) for d in range(out.dim())])


def _for_all(body: Callable[..., torch.Tensor], operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """The values of a body for all positions: it is traced for single ones, and its operators broadcast.

    Args:
        body: takes tensors without dims.
        operands: of four dims, which broadcast.

    Raises:
        CaptureError: an operator of the body mixes positions.
    """
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    where = line_being_run()
    mode = detect_fake_mode(operands)

    def single(*scalars: torch.Tensor) -> torch.Tensor:
        with TransformGetItemToIndex():
            return body(*scalars)

    def trace() -> fx.GraphModule:
        with mode or contextlib.nullcontext():
            scalars = [torch.empty((), dtype=x.dtype, device=x.device) for x in operands]
            return make_fx(single)(*scalars)

    graph_module = elsewhere(trace)
    values: dict[fx.Node, Any] = dict(zip(graph_module.graph.find_nodes(op="placeholder"), operands, strict=True))
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(graph_module, str(node.target))  # a tensor of the model that the body reads
        elif node.op == "call_function":
            if not _broadcasts(node):
                raise CaptureError(
                    f"a score_mod or mask_mod of flex_attention runs {node.target}, which works on more than one entry "
                    f"at a time\n  at {where}\n  compute that before, and look it up by the positions"
                )
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _with_dims(values[n]))
            values[node] = node.target(*_tables(node, args, values), **kwargs)
    (result,) = graph_module.graph.output_node().all_input_nodes
    value: torch.Tensor = _with_dims(values[result])
    return value


def _broadcasts(node: fx.Node) -> bool:
    """Whether an operator on tensors without dims does the same for each entry of tensors with dims."""
    target = node.target
    if not isinstance(target, OpOverload) or not isinstance(node.meta["val"], torch.Tensor) or node.meta["val"].dim():
        return False
    if target is aten.index.Tensor:
        table: Any = node.args[0]
        indices: Any = node.args[1]
        value = table.meta.get("val")
        rank = len(indices) if value is None else value.dim()
        return len(indices) == rank and all(
            isinstance(i, fx.Node) and not i.meta["val"].dim() and i.meta["val"].dtype != torch.bool for i in indices
        )
    operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
    single = all(not n.meta["val"].dim() for n in operands)
    return single and (torch.Tag.pointwise in target.tags or target in _COPIES or not _reads_tensors(target))


def _reads_tensors(target: OpOverload) -> bool:
    """Whether what an operator gives depends on the entries of a tensor: `new_ones` and `full` don't."""
    return not target.name().startswith(
        ("aten::new_", "aten::full", "aten::ones", "aten::zeros", "aten::scalar_tensor")
    )


def _tables(node: fx.Node, args: Any, values: dict[fx.Node, Any]) -> Any:
    """The arguments of a call; a table that is looked up keeps its dims."""
    table: Any = node.args[0]
    return (values[table], *args[1:]) if node.target is aten.index.Tensor else args


def _with_dims(value: Any) -> Any:
    """A tensor without dims takes part in type promotion like one with dims, as it does among others without."""
    return value.view(1, 1, 1, 1) if isinstance(value, torch.Tensor) and not value.dim() else value
