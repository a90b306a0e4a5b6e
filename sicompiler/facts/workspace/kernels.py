"""What each kernel of a graph allocates beside its results."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch._ops import OpOverload

from sicompiler.facts.calls import bind
from sicompiler.facts.storages import GraphFacts
from sicompiler.facts.workspace.table import workspace_bytes


def node_workspaces(facts: GraphFacts) -> npt.NDArray[np.int64]:
    """Workspace of every node of a graph, in bytes."""

    def nbytes(p: int) -> int:
        node = facts.nodes[p]
        if p < facts.num_placeholders or not isinstance(node.target, OpOverload) or not facts.tensors[p]:
            return 0
        operands = [facts.tensors[source][index] for source, index in facts.calls.operands[p]]
        arguments = bind(node.target, node.args, node.kwargs)
        return workspace_bytes(node.target, operands, facts.tensors[p], facts.device_type, arguments)

    return np.array(facts.calls.each(nbytes), dtype=np.int64)
