"""One call of a model as a value: its arguments, flat and as given, where it runs, and what its plan goes by."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree

from sicompiler.capture import flatten_inputs
from sicompiler.runtime.examples import Inputs


@dataclass(frozen=True, eq=False)
class Call:
    """A call of one method of a live model.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        flat: both, flat (`flatten_inputs`).
        spec: their structure.
        device: where it runs.
        key: what its plan depends on; None where nobody has worked that out.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    flat: Sequence[Any]
    spec: pytree.TreeSpec
    device: torch.device
    key: Hashable | None = None

    @classmethod
    def of(cls, model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """A call of a model, which runs where its largest input is; without tensors, where the model is."""
        flat, spec = flatten_inputs(args, kwargs)
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        home = max(tensors, key=torch.Tensor.numel) if tensors else next(model.parameters(), torch.empty(0))
        return cls(args, kwargs, flat, spec, home.device)

    @property
    def inputs(self) -> Inputs:
        """Its arguments as a pair, as they were given."""
        return self.args, self.kwargs

    def keyed(self, key: Hashable) -> Call:
        """The call with what its plan depends on."""
        return replace(self, key=key)
