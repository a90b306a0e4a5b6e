"""What a second call of a pipeline does not do again, and sees all the same."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

import sicompiler
from sicompiler.capture import flatten_inputs
from sicompiler.capture.results import open_inputs
from sicompiler.pipelines import reserved
from sicompiler.pipelines.components import components_of
from tests.mini_pipeline import MiniPipeline, MiniText, mini, picture

ROOMY = "1GiB"
T = torch.zeros(2)


def another(pipe: Any) -> None:
    pipe.text_encoder = MiniText()


def none(pipe: Any) -> None:
    pipe.text_encoder = None


def past_setattr(pipe: Any) -> None:
    pipe.__dict__["unet"] = nn.Linear(2, 2)


def optional(pipe: Any) -> None:
    pipe.register_modules(image_encoder=MiniText())


@pytest.mark.parametrize("change", [another, none, past_setattr, optional])
def test_components_are_those_the_pipeline_has_now(change: Callable[[Any], None]) -> None:
    pipe = mini()
    assert components_of(pipe) == components_of(pipe) == dict(sorted(pipe.components.items()))
    change(pipe)
    for _ in range(2):
        found = components_of(pipe)
        assert list(found) == sorted(pipe.components)
        assert all(found[name] is part for name, part in pipe.components.items())


def test_a_pipeline_that_tells_its_components_itself_is_asked_every_time() -> None:
    class Own(MiniPipeline):
        @property
        def components(self) -> dict[str, Any]:
            return {"unet": self.unet, **({"more": self.more} if "more" in vars(self) else {})}

    pipe: Any = mini()
    pipe.__class__ = Own
    assert list(components_of(pipe)) == ["unet"]
    pipe.__dict__["more"] = MiniText()
    assert list(components_of(pipe)) == ["more", "unet"]


def test_the_names_of_components_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = mini()
    components_of(pipe)
    monkeypatch.setattr(type(pipe), "_get_signature_keys", lambda *_: pytest.fail("read again"))
    assert "unet" in components_of(pipe)


def test_a_hook_of_diffusers_put_in_a_registry_between_calls_is_refused() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    registry = HookRegistry.check_if_exists_or_initialize(pipe.unet)
    pipe(picture())
    registry.register_hook(ModelHook(), "some_cache")
    with pytest.raises(sicompiler.BadInput, match=r"hooks are registered on .*unet.*some_cache"):
        pipe(picture())


def test_plans_are_not_looked_through_for_tensors_that_the_pipeline_holds() -> None:
    """A wrapper of torch around a component has our state among its arguments: it is large, and none of theirs."""
    pipe = mini()
    sicompiler.compile_for_budget(pipe, ROOMY)
    pipe(picture())
    state: Any = pipe.unet.forward.__self__
    state.ballast = [T]
    assert reserved._tensors([(state, T)], set()) == [T]


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ({"a": 1, "b": "x"}, 0),
        ({"a": 1, "b": ("x", (2,))}, 0),
        ({"a": 1, "b": T}, 1),
        ({"a": 1, "b": ("x", (T,))}, 1),
        ({"a": {"b": [T, (T,)]}}, 2),
        ([[[[T]]]], 1),
        ([[[[[T]]]]], 0),  # as deep as nobody nests them
        (UserDict({"a": T}), 1),
        (SimpleNamespace(a=T, b=None), 1),
        (nn.Linear(2, 2), 0),
    ],
    ids=["plain", "tuples", "dict", "in tuples", "nested", "deep", "deeper", "mapping", "object", "module"],
)
def test_tensors_are_found_in_whatever_holds_them(value: Any, count: int) -> None:
    for _ in range(2):
        assert len(reserved._tensors([value], set())) == count


def test_a_tensor_that_is_put_in_a_dict_of_plain_values_is_found() -> None:
    settings: dict[str, Any] = {"a": 1}
    assert not reserved._tensors([settings], set())
    settings["a"] = T
    assert reserved._tensors([settings], set()) == [T]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((T,), {}),
        ((T, 1, None), {"b": T, "a": "x"}),
        ((nn.Parameter(T),), {"a": 2.0}),
        (([T, {"x": T}],), {"a": (1, T)}),
        ((), {"a": torch.Size([2])}),
        ((SimpleNamespace(a=T),), {}),
    ],
)
def test_plain_calls_are_flattened_as_torch_flattens_all(args: Any, kwargs: dict[str, Any]) -> None:
    leaves, spec = flatten_inputs(args, kwargs)
    named = {name: kwargs[name] for name in sorted(kwargs)}
    expected, structure = pytree.tree_flatten((args, named))
    assert all(one is other for one, other in zip(leaves, expected, strict=True))
    assert spec == structure
    assert str(spec) == str(structure)
    assert repr(pytree.tree_unflatten(leaves, spec)) == repr(pytree.tree_unflatten(expected, structure))


def test_arguments_without_objects_are_opened_as_they_are() -> None:
    plain = ((T, 1), {"a": None})
    assert open_inputs(plain) is plain


def test_inputs_are_kept_without_their_data_once_for_calls_alike() -> None:
    model: Any = nn.Linear(2, 2)
    sicompiler.compile_for_budget(model, ROOMY)
    state = model.forward.__self__
    kept = []
    for rows in (3, 3, 4):
        model(torch.zeros(rows, 2))
        kept.append(state.last[1])
    assert kept[0] is kept[1]
    assert kept[2][0][0].shape == (4, 2)
