"""Which idle component leaves first: the same in a running pipeline and in `sicompiler plan`, for every preset."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from sicompiler.cli.pipelines import PhaseCall, PipelinePhases
from sicompiler.compiler.planner import Planner
from sicompiler.pipelines.component import CompiledComponent
from sicompiler.pipelines.eviction import IdleComponent, eviction_order
from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.residency import Residency
from sicompiler.pipelines.roles import Phase, Role
from sicompiler.pipelines.weights import weights_of
from sicompiler.turns import turn_of
from sicompiler.zoo.pipelines import PIPELINE_PRESETS, PartName, part_specs

CPU = torch.device("cpu")


class Component(nn.Module):
    """Weights of a size, and the methods of every role."""

    def __init__(self, floats: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(floats))

    def encode(self) -> None: ...

    def decode(self) -> None: ...


class Pipe:
    """What `modules_of` reads of a diffusers pipeline."""

    def __init__(self, components: dict[str, Component]) -> None:
        self.components = components


def while_running(components: dict[str, Component], parts: list[PartName], now: PartName) -> list[str]:
    """The order in which a running pipeline moves components away for one part."""
    pipe = Pipe(components)
    state = CompiledPipeline(pipe, 1, None)
    for part in parts:
        state.components[Role(part.component, part.method, Phase(part.phase))] = cast(CompiledComponent, None)
    role = Role(now.component, now.method, Phase(now.phase))
    runs = cast(
        CompiledComponent,
        SimpleNamespace(model=components[now.component], role=role, turn=turn_of(components[now.component])),
    )
    left: list[str] = []
    while state.make_room(runs, CPU, frozenset(left)):
        gone = {name for name, part in components.items() if not weights_of(part, CPU)} - set(left)
        left += gone
    return left


def while_planning(components: dict[str, Component], parts: list[PartName], now: PartName) -> list[str]:
    """The order in which `sicompiler plan` moves them."""
    weights = {name: part.weight.nbytes for name, part in components.items()}
    planned = tuple(PhaseCall(cast(Any, part), cast(Planner, None)) for part in parts)
    return list(PipelinePhases(planned, weights, 0, True).eviction_order(planned[parts.index(now)]))


@pytest.mark.parametrize("sizes", ["growing", "shrinking", "equal"])
@pytest.mark.parametrize("name", PIPELINE_PRESETS)
def test_running_and_planned_pipelines_move_the_same_components_first(
    name: str, sizes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[PartName] = list(part_specs(name, "float16"))
    names = sorted({part.component for part in parts} | {row[0] for row in PIPELINE_PRESETS[name].idle})
    floats = {"growing": range(8, 8 + len(names)), "shrinking": range(40, 40 - len(names), -1), "equal": [8] * 9}
    monkeypatch.setattr(Residency, "send", lambda self, part, device: setattr(part, "weight", None))
    for now in parts:
        made = [{n: Component(k) for n, k in zip(names, floats[sizes], strict=False)} for _ in range(2)]
        order = while_running(made[0], parts, now)
        assert order == while_planning(made[1], parts, now)
        assert sorted(order) == sorted(set(names) - {now.component})


def test_what_never_runs_leaves_first_then_what_is_over_then_the_largest() -> None:
    encode, denoise, decode = Phase
    idle = [
        IdleComponent("vae", frozenset({encode, decode}), 5),
        IdleComponent("text_encoder", frozenset({encode}), 90),
        IdleComponent("text_encoder_2", frozenset({encode}), 7),
        IdleComponent("adapter", frozenset(), 1),
        IdleComponent("transformer_2", frozenset({denoise}), 100),
    ]
    assert eviction_order(idle, denoise) == ("adapter", "text_encoder", "text_encoder_2", "transformer_2", "vae")
    assert eviction_order(idle[::-1], encode) == ("adapter", "transformer_2", "text_encoder", "text_encoder_2", "vae")
    assert eviction_order(idle, decode)[:2] == ("adapter", "transformer_2")
