"""Random convolutions and matrix products on this CPU: what each allocates beside its result, against the prediction.

    python -m benchmarks random_calls 0 1000
    python -m benchmarks random_calls 0 1000 --threads 2

Kernels choose their algorithm, and so their scratch memory, by dtype, layout, channels, size and threads. Calls that
allocate more than predicted are printed, and counted are those above 1 MiB that are predicted more than 15 % too high.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.kernel_calls import Allocated, allocated, shapes

aten = torch.ops.aten
Call = tuple[OpOverload, list[Any]]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHANNELS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32, 33, 40, 48, 64, 96)
IMAGES = {
    1: ([7], [16], [33], [64], [200]),
    2: ([5, 7], [8, 8], [13, 17], [33, 31], [47, 65], [64, 64]),
    3: ([3, 5, 7], [5, 9, 11], [9, 17, 23], [4, 16, 16]),
}
EQUATIONS = {  # by sizes: b, f (or heads), n, m and c
    "bnc,bmc->bnm": ("bnc", "bmc"),
    "bnc,bcm->bnm": ("bnc", "bcm"),
    "bfnc,bfmc->bfnm": ("bfnc", "bfmc"),
    "bnc,mc->bnm": ("bnc", "mc"),
    "bnfc,bmfc->bfnm": ("bnfc", "bmfc"),
    "bfnm,bmfc->bnfc": ("bfnm", "bmfc"),
}


def convolution(draw: random.Random) -> Call:
    """A convolution in one to three dims: layouts of both operands, groups, kernels of 1, strides."""
    rank, dtype = draw.choice((1, 2, 2, 2, 3, 3)), draw.choice(DTYPES)
    inputs, outputs = draw.choice(CHANNELS), draw.choice(CHANNELS)
    groups = draw.choice([g for g in (1, 1, 1, 2, 3, 4, 8, 16) if inputs % g == outputs % g == 0])
    size = draw.choice((1, 1, 3, 3, 3, 4, 5))
    kernel = draw.choice(([size] * 3, [size] * 3, [3, 1, 1], [1, 3, 3])) if rank == 3 else [size] * rank
    padding = [k // 2 for k in kernel]
    x = _image(draw, torch.randn(draw.choice((1, 1, 2, 3, 5)), inputs, *draw.choice(IMAGES[rank])).to(dtype))
    weight = torch.randn(outputs, inputs // groups, *kernel).to(dtype)
    if draw.random() < 0.3:
        weight = _innermost(weight)
    bias = draw.choice((None, torch.randn(outputs).to(dtype)))
    target = (aten.conv1d, aten.conv2d, aten.conv3d)[rank - 1].default
    return target, [x, weight, bias, [draw.choice((1, 1, 1, 2))] * rank, padding, [1] * rank, groups]


def product(draw: random.Random) -> Call:
    """A linear layer, a matrix product or an einsum of two factors in any layout."""
    dtype, name = draw.choice(DTYPES), draw.choice(("linear", "linear", "matmul", "bmm", "einsum", "einsum"))
    sizes = {"b": draw.choice((1, 1, 2, 3, 5)), "f": draw.choice((1, 2, 3))}
    sizes |= {name: draw.choice((*CHANNELS, 100)) for name in "nmc"}

    def factor(dims: Sequence[str]) -> Tensor:
        return _any_layout(draw, [sizes[dim] for dim in dims], dtype)

    if name == "linear":
        x = factor(draw.choice(("nc", "bnc", "bfnc", "bffnc")))
        weight, bias = torch.randn(sizes["m"], sizes["c"]).to(dtype), torch.randn(sizes["m"]).to(dtype)
        return aten.linear.default, [x, weight, draw.choice((None, bias))]
    if name == "bmm":
        return aten.bmm.default, [factor("bnc"), factor("bcm")]
    if name == "matmul":
        first, second = draw.choice((("nc", "cm"), ("bnc", "bcm"), ("bnc", "cm"), ("bfnc", "bfcm"), ("bfnc", "cm")))
        return aten.matmul.default, [factor(first), factor(second)]
    equation = draw.choice(sorted(EQUATIONS))
    return aten.einsum.default, [equation, [factor(dims) for dims in EQUATIONS[equation]]]


def _innermost(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _image(draw: random.Random, x: Tensor) -> Tensor:
    """Row-major, channels innermost, channels behind the first dim of space, or a part of more channels."""
    layout = draw.choice(("row-major", "innermost", "innermost", "permuted", "narrowed"))
    if layout == "innermost":
        return _innermost(x)
    if layout == "permuted":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return torch.cat([x, x], 1)[:, : x.shape[1]] if layout == "narrowed" else x


def _any_layout(draw: random.Random, shape: list[int], dtype: torch.dtype) -> Tensor:
    layout = draw.choice(("row-major", "row-major", "permuted", "transposed", "narrowed", "expanded"))
    order = list(range(len(shape)))
    if layout == "permuted":
        draw.shuffle(order)
    elif layout == "transposed":
        order[-2:] = order[:-3:-1]
    x = torch.randn([shape[dim] for dim in order]).to(dtype).permute([order.index(dim) for dim in range(len(order))])
    if layout == "narrowed":
        dim = draw.randrange(len(shape))
        return torch.cat([x, x], dim).narrow(dim, draw.randrange(shape[dim]), shape[dim])
    return x[:1].expand(shape) if layout == "expanded" and len(shape) > 2 else x


def random_call(seed: int) -> Call:
    """A convolution where the seed is even, else a product.

    Args:
        seed: the same seed gives the same call.

    Returns:
        The operator and its arguments.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    return convolution(draw) if seed % 2 == 0 else product(draw)


def measured(seed: int) -> tuple[str, Allocated]:
    """Run one call; twice, as kernels keep what they make when they are first called.

    Args:
        seed: of the call.

    Returns:
        The call in words, and what it allocated.
    """
    target, args = random_call(seed)
    with torch.no_grad():
        target(*args)
    done = allocated(target, args, {})
    tensors = [x for arg in args for x in (arg if isinstance(arg, list) else [arg]) if isinstance(x, Tensor)]
    return f"seed {seed}: {target} {shapes(args)}, strides {[x.stride() for x in tensors]}, {tensors[0].dtype}", done


def main() -> None:
    """Run the seeds from the first argument up to the second."""
    parser = argparse.ArgumentParser(prog="random_calls", description=__doc__.splitlines()[0])
    parser.add_argument("start", type=int, nargs="?", default=0)
    parser.add_argument("stop", type=int, nargs="?", default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    under = over = 0
    for seed in range(options.start, options.stop):
        call, done = measured(seed)
        if done.measured > done.predicted:
            under += 1
            print(f"{call}: measured {done.measured}, predicted {done.predicted}", flush=True)
        over += done.total > 2**20 and done.predicted > done.measured + 0.15 * done.total
    print(f"{options.stop - options.start} calls, {under} above their prediction, {over} predicted 15 % too high")


if __name__ == "__main__":
    main()
