"""Bytes of a component's weights are added up again whenever its weights are others than they were."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sicompiler.capture import named_tensors, tensors_now
from sicompiler.pipelines import weights
from sicompiler.pipelines.weights import weights_of

CPU, META = torch.device("cpu"), torch.device("meta")


def model() -> Any:
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Sequential(nn.BatchNorm1d(8, affine=False)))


def swap_memory(m: Any) -> None:
    m[0].weight.data = torch.zeros(8, 16)[:, ::2]


def share(m: Any) -> None:
    m.append(nn.Linear(8, 8, bias=False))
    m[-1].weight = m[0].weight


def set_both(m: Any) -> None:
    m[1].scale = 1.0
    m[1].register_parameter("more", nn.Parameter(torch.zeros(2)))


CHANGES: dict[str, Callable[[Any], object]] = {
    "another parameter": lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(8, 4))),
    "other memory": swap_memory,
    "another dtype": lambda m: m.double(),
    "a bias": lambda m: m[0].register_parameter("bias", nn.Parameter(torch.zeros(8))),
    "another buffer": lambda m: m[1][0].register_buffer("more", torch.zeros(8)),
    "a child": lambda m: m[1].append(nn.Linear(2, 2)),
    "a child less": lambda m: m.pop(1),
    "a shared weight": share,
    "another device": lambda m: m.to(META),
    "a setting": lambda m: setattr(m[1], "scale", 2.0),
    "a weight without a setting": lambda m: setattr(m[1][0], "weight", nn.Parameter(torch.ones(8))),
    "a setting and a parameter": set_both,
    "other dicts": lambda m: m[0].__dict__.update(_parameters={"weight": nn.Parameter(torch.zeros(8, 2))}),
    "a weight tied to a view of another": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data[:4])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str) -> None:
    own, twin = model(), model()
    before = weights_of(own, CPU)
    assert weights_of(own, CPU) == before
    assert list(tensors_now(own)) == list(tensors_now(own)) == list(named_tensors(own))
    CHANGES[name](own)
    CHANGES[name](twin)
    assert sorted(weights_of(own, CPU).values()) == sorted(weights_of(twin, CPU).values())
    expected = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in own.state_dict().values()}
    assert weights_of(own, CPU) == ({} if name == "another device" else expected)
    found = named_tensors(own)
    for _ in range(2):
        now = tensors_now(own)
        assert list(now) == list(found)
        assert all(now[path] is tensor for path, tensor in found.items())


def test_nothing_is_added_up_twice_nor_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    own, added = model(), list[nn.Module]()

    class Noted(weights._Snapshot):
        def __init__(self, part: nn.Module) -> None:
            added.append(part)
            super().__init__(part)

    monkeypatch.setattr(weights, "_Snapshot", Noted)
    for _ in range(3):
        weights_of(own, CPU)
        tensors_now(own)
    assert added == [own]
    weight = weakref.ref(own[0].weight)
    own.pop(0)
    gc.collect()
    assert weight() is None
