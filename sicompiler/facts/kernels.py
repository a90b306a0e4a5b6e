"""What each kernel of a graph allocates beside its results."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch._ops import OpOverload

from sicompiler.facts.calls import bind, operands_of
from sicompiler.facts.storages import GraphFacts
from sicompiler.facts.workspace import workspace_bytes


def node_workspaces(facts: GraphFacts) -> npt.NDArray[np.int64]:
    """Workspace of every node of a graph, in bytes."""
    found = np.zeros(len(facts.nodes), dtype=np.int64)
    for p in range(facts.num_placeholders, len(facts.nodes)):
        node = facts.nodes[p]
        if isinstance(node.target, OpOverload) and facts.tensors[p]:
            operands = [facts.tensors[facts.position[source]][index] for source, index in operands_of(node)]
            found[p] = workspace_bytes(
                node.target, operands, facts.tensors[p], facts.device_type, bind(node.target, node.args, node.kwargs)
            )
    return found
