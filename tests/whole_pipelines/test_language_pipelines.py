"""A pipeline whose text encoder is a language model, and its largest component: planned and streamed like any other.

Whole pipelines of diffusers with such encoders are in `tests/whole_pipelines/test_pipelines.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import sicompiler
from tests.mini_pipeline import WIDTH, MiniPipeline, MiniUNet, MiniVae, close, picture
from tests.pipelines_llm import llama

pytestmark = pytest.mark.usefixtures("cached")
F64 = torch.float64


class LanguagePipeline(MiniPipeline):
    """Takes a hidden state from within the language model, as pipelines do; the cache beside it is let go."""

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        output = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        self.layers = len(output.past_key_values.layers)
        hidden: torch.Tensor = output.hidden_states[-2]
        return hidden

    def generate(self, ids: torch.Tensor) -> torch.Tensor:
        """Words that go on from a prompt, as a prompt enhancer makes them: every call but the first has a cache."""
        output = self.text_encoder(input_ids=ids)
        cache = output.past_key_values
        for number in (4, 5):
            output = self.text_encoder(input_ids=torch.full((2, 1), number), past_key_values=cache)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


def pipeline() -> Any:
    torch.manual_seed(0)
    encoder = llama(F64, hidden_size=WIDTH, intermediate_size=1024)
    pipe = LanguagePipeline(encoder, MiniUNet().double().eval(), MiniVae().double().eval(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_encoder_heavier_than_the_budget_is_streamed() -> None:
    pipe = pipeline()
    weights = sum(p.nbytes for p in pipe.text_encoder.parameters())
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, 1)
    assert close(pipe(picture()), reference)
    assert pipe.layers == 3
    report = sicompiler.report(pipe)
    assert report.phases[0].component == "text_encoder"
    assert report.phases[0].predicted_peak_bytes is not None
    assert report.phases[0].predicted_peak_bytes > weights
    high = report.predicted_peak_bytes
    assert high is not None
    for budget in (high, (high + weights // 2) // 2, weights // 2):
        sicompiler.compile_for_budget(pipe, f"{budget}B")
        found = sicompiler.verify(pipe, ((picture(),), {}))
        assert found.max_abs_error <= 1e-12
        assert found.fits, str(found)
        assert found.measured_peak_bytes <= budget
    sicompiler.compile_for_budget(pipe, f"{weights // 2}B", offload="none")
    with pytest.raises(sicompiler.OverBudget, match="text_encoder needs"):
        pipe(picture())
    sicompiler.release(pipe)
    assert torch.equal(pipe(picture()), reference)


def test_calls_that_go_on_with_a_cache_run_untouched_within_the_budget() -> None:
    pipe, ids = pipeline(), torch.arange(4, 10).reshape(2, 3)
    with torch.no_grad():
        wanted = pipe.generate(ids)
        sicompiler.compile_for_budget(pipe, 1)
        assert close(pipe.generate(ids), wanted)
        assert close(pipe.generate(ids), wanted)
    rows = {row.note: row.calls for row in sicompiler.report(pipe).phases}
    assert rows == {"": 2, "it is called with a DynamicCache, whose tensors are no inputs of a graph": 4}
    weights = sum(p.nbytes for p in pipe.text_encoder.parameters())
    sicompiler.compile_for_budget(pipe, f"{weights}B")
    with pytest.raises(sicompiler.OverBudget, match="called with a DynamicCache"), torch.no_grad():
        pipe.generate(ids)
