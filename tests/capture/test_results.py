"""What a model returns comes back whole: caches, distributions and other objects, new ones at every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.capture import capture
from sicompiler.errors import CaptureError
from sicompiler.testing import run_program
from tests.pipelines_llm import gemma2, gemma3, llama, qwen2_vl, qwen25_vl

F64 = torch.float64


class Settings:
    """Belongs to a model."""

    def __init__(self) -> None:
        self.gain = 2.0


class Layer:
    """Keeps two tensors, as a layer of a cache does."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values, self.length = keys, values, keys.shape[-1]


class Cache:
    """Holds tensors two levels down, one of them twice; itself; what is the model's; and a list of its own."""

    def __init__(self, settings: Settings, layers: list[Layer]) -> None:
        self.settings, self.layers, self.seen = settings, layers, ["a"]
        self.itself, self.kind, self.newest = self, Layer, layers[-1].keys


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.settings = nn.Linear(4, 4), Settings()

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        first = self.inner(x) * self.settings.gain
        second = torch.relu(first)
        cache = Cache(self.settings, [Layer(x + 1, first), Layer(second, first)])
        return {"out": second, "cache": cache, "none": None, "kind": "text"}


def test_an_object_comes_back_as_the_model_returns_it() -> None:
    model, x = Remembers().double(), torch.randn(3, 4, dtype=F64)
    with torch.no_grad():
        theirs = model(x)
    ours = run_program(capture(model, (x,)), model, (x,), {})
    assert list(ours) == list(theirs)
    assert (ours["none"], ours["kind"]) == (None, "text")
    cache = ours["cache"]
    assert type(cache) is Cache
    assert cache.itself is cache
    assert cache.kind is Layer
    assert cache.settings is model.settings  # shared with the model, as it is untouched
    assert cache.newest is cache.layers[1].keys
    assert cache.newest is ours["out"]
    assert [layer.length for layer in cache.layers] == [4, 4]
    for mine, other in zip(cache.layers, theirs["cache"].layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def test_two_calls_share_nothing_but_what_is_the_models() -> None:
    model, x = Remembers().double(), torch.randn(3, 4, dtype=F64)
    program = capture(model, (x,))
    one, other = (run_program(program, model, (x,), {})["cache"] for _ in range(2))
    one.seen.append("b")
    one.layers[0].keys.zero_()
    one.layers.clear()
    assert other.seen == ["a"]
    assert len(other.layers) == 2
    assert torch.equal(other.layers[0].keys, x + 1)


class Makes(nn.Module):
    """Returns a tensor that it makes of no input, which a trace takes for a constant."""

    def forward(self, x: torch.Tensor) -> Layer:
        return Layer(x * 2, torch.tensor([1.0, 2.0], dtype=F64))


def test_a_constant_in_a_result_is_a_new_tensor_at_every_call() -> None:
    x = torch.randn(3, dtype=F64)
    program = capture(Makes(), (x,))
    run_program(program, Makes(), (x,), {}).values.zero_()
    assert run_program(program, Makes(), (x,), {}).values.tolist() == [1.0, 2.0]


class Locked(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        import threading

        layer = Layer(x * 2, x)
        layer.lock = threading.Lock()  # type: ignore[attr-defined]
        return layer


def test_an_object_that_cannot_be_copied_is_a_capture_error() -> None:
    with pytest.raises(CaptureError, match=r"Locked can't be captured.*lock"):
        capture(Locked(), (torch.ones(2),))


def test_nothing_is_registered_with_torch_for_other_peoples_classes() -> None:
    before = set(torch.utils._pytree.SUPPORTED_NODES)
    capture(Remembers().double(), (torch.randn(3, 4, dtype=F64),))
    assert set(torch.utils._pytree.SUPPORTED_NODES) == before


def _tokens(batch: int = 2, length: int = 9) -> dict[str, Any]:
    ids = torch.randint(4, 9, (batch, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}


SLOW = pytest.mark.slow
MODELS = [llama, *(pytest.param(make, marks=SLOW) for make in (gemma2, gemma3, qwen2_vl, qwen25_vl))]


@pytest.mark.parametrize("make", MODELS)
def test_a_language_model_returns_its_cache_and_all_hidden_states(make: Any) -> None:
    model = make(F64)
    for call in (_tokens(), _tokens(1, 7)):
        with torch.no_grad():
            theirs = make(F64)(**call)
        ours = run_program(capture(model, (), call), model, (), call)
        assert type(ours) is type(theirs)
        assert list(ours) == list(theirs)
        assert len(ours.hidden_states) == len(theirs.hidden_states)  # hooks that collect them are there once
        assert all(map(torch.equal, ours.hidden_states, theirs.hidden_states))
        mine, other = ours.past_key_values, theirs.past_key_values
        assert type(mine) is type(other)
        assert [type(layer) for layer in mine.layers] == [type(layer) for layer in other.layers]
        assert mine.get_seq_length() == other.get_seq_length()
        for layer, wanted in zip(mine.layers, other.layers, strict=True):
            assert list(vars(layer)) == list(vars(wanted))
            assert torch.equal(layer.keys, wanted.keys)
            assert torch.equal(layer.values, wanted.values)


def test_a_returned_cache_goes_on() -> None:
    """Another token after the prompt, by the cache of a compiled call: what the model itself would compute."""
    model, call = llama(F64), _tokens()
    del call["attention_mask"]
    more = {"input_ids": torch.full((2, 1), 5)}
    with torch.no_grad():
        wanted = model(**more, past_key_values=model(**call).past_key_values).last_hidden_state
        cache = run_program(capture(model, (), call), model, (), call).past_key_values
        assert torch.equal(model(**more, past_key_values=cache).last_hidden_state, wanted)


def test_verify_compares_the_cache_too() -> None:
    model, call = sicompiler.compile_for_budget(llama(F64), 1), _tokens()
    result = sicompiler.verify(model, ((), call))
    assert result.max_rel_error <= 1e-12
    assert result.measured_peak_bytes <= result.predicted_peak_bytes
