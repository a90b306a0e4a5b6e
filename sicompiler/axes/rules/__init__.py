"""The axis rules, one file per family of operators. Importing this package registers them all."""

from sicompiler.axes.rules import (
    along_dim,
    attention,
    conv,
    creation,
    indexing,
    joins,
    matmul,
    norm,
    own,
    padding,
    pointwise,
    reductions,
    resampling,
    shape,
    splits,
)

__all__ = [
    "along_dim",
    "attention",
    "conv",
    "creation",
    "indexing",
    "joins",
    "matmul",
    "norm",
    "own",
    "padding",
    "pointwise",
    "reductions",
    "resampling",
    "shape",
    "splits",
]
