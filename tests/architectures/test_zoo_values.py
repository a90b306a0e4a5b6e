"""Models of diffusers that decide by values, fill tables by `.data`, attend by `flex_attention`, only run tiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

import sicompiler
from sicompiler.capture import capture
from sicompiler.runtime.verify import errors
from sicompiler.testing import run_program
from tests import pipeline_parts as parts

diffusers = pytest.importorskip("diffusers")
FLOAT64 = 1e-12

Kwargs = dict[str, Any]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def hunyuan15(**inputs: Any) -> tuple[torch.nn.Module, Kwargs]:
    torch.manual_seed(0)
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=16,
        image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    )  # fmt: skip
    batch = inputs.pop("batch", 1)
    return model, {
        "hidden_states": randn(batch, 9, 2, 4, 4), "timestep": torch.full((batch,), 500.0).double(),
        "encoder_hidden_states": randn(batch, 6, 16), "encoder_attention_mask": torch.ones(batch, 6),
        "encoder_hidden_states_2": randn(batch, 4, 16), "encoder_attention_mask_2": torch.ones(batch, 4),
        "image_embeds": torch.zeros(batch, 5, 12).double(), "return_dict": False,
    } | inputs  # fmt: skip


def framepack(**inputs: Any) -> tuple[torch.nn.Module, Kwargs]:
    torch.manual_seed(0)
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), image_condition_type=None,
        has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True,
    )  # fmt: skip
    batch = inputs.pop("batch", 1)
    return model, {
        "hidden_states": randn(batch, 4, 2, 8, 8), "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": randn(batch, 6, 16), "encoder_attention_mask": lengths(4, batch=batch),
        "pooled_projections": randn(batch, 8), "image_embeds": randn(batch, 5, 16), "indices_latents": torch.arange(2),
        "guidance": torch.full((batch,), 6000.0).double(), "latents_clean": randn(batch, 4, 2, 8, 8),
        "indices_latents_clean": torch.arange(2), "latents_history_2x": randn(batch, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.arange(2), "latents_history_4x": randn(batch, 4, 4, 8, 8),
        "indices_latents_history_4x": torch.arange(4), "return_dict": False,
    } | inputs  # fmt: skip


def lengths(*tokens: int, batch: int = 1) -> torch.Tensor:
    rows = [[int(i < n) for i in range(6)] for n in (tokens * batch)[:batch]]
    return torch.tensor(rows)


def cogvideox(frames: int, height: int, width: int, channels: int = 4) -> tuple[torch.nn.Module, Kwargs]:
    torch.manual_seed(0)
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=channels, out_channels=4, time_embed_dim=2,
        text_embed_dim=16, num_layers=1, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    return model, {
        "hidden_states": randn(1, frames, channels, height, width), "encoder_hidden_states": randn(1, 8, 16),
        "timestep": torch.tensor([5]), "return_dict": False,
    }  # fmt: skip


def anyflow(**inputs: Any) -> tuple[torch.nn.Module, Kwargs]:
    torch.manual_seed(0)
    model = diffusers.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2), compressed_patch_size=(1, 4, 4), full_chunk_limit=2, num_attention_heads=2,
        attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=1,
        rope_max_seq_len=32, chunk_partition=(1, 2, 2),
    )  # fmt: skip
    return model, {
        "hidden_states": randn(1, 5, 4, 8, 8), "timestep": torch.full((1, 5), 500.0).double(),
        "r_timestep": torch.full((1, 5), 400.0).double(), "encoder_hidden_states": randn(1, 6, 16),
        "chunk_partition": [1, 2, 2], "return_dict": False,
    } | inputs  # fmt: skip


def kandinsky5(**inputs: Any) -> tuple[torch.nn.Module, Kwargs]:
    torch.manual_seed(0)
    model = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
        attention_type="nabla", attention_P=0.9,
    )  # fmt: skip
    model.set_attention_backend("flex")  # as its documentation asks for
    tokens = (2, 16, 16)
    count = tokens[0] * tokens[1] * tokens[2] // 4 // 64
    sta = torch.eye(count, dtype=torch.bool)[None, None]
    return model, {
        "hidden_states": randn(1, *tokens, 4), "encoder_hidden_states": randn(1, 6, 16),
        "timestep": torch.tensor([500.0]),
        "pooled_projections": randn(1, 8), "visual_rope_pos": [torch.arange(n) for n in (2, 8, 8)],
        "text_rope_pos": torch.arange(6), "scale_factor": (1.0, 1.0, 1.0),
        "sparse_params": {"to_fractal": True, "sta_mask": sta, "attention_type": "nabla", "P": 0.9},
        "return_dict": False,
    } | inputs  # fmt: skip


def captured_equals(model: torch.nn.Module, kwargs: Kwargs, *others: Kwargs) -> None:
    """The graph for some inputs gives what the model gives; and so for inputs that decide alike."""
    program = capture(model, (), kwargs)
    for each in (kwargs, *others):
        with torch.no_grad():
            theirs = model(**each)
        ours = run_program(program, model, (), each)
        assert errors(ours, theirs)[1] <= FLOAT64


def two_prompts() -> tuple[torch.nn.Module, Kwargs]:
    return hunyuan15(batch=2, encoder_attention_mask=lengths(6, 3, batch=2).float())


CASES: dict[str, Callable[[], tuple[torch.nn.Module, Kwargs]]] = {
    "HunyuanVideo 1.5, text to video": hunyuan15,
    "FramePack": framepack,
    "CogVideoX-2B, larger": lambda: cogvideox(3, 12, 8),
    "AnyFlow-FAR": anyflow,
}
SLOW: dict[str, Callable[[], tuple[torch.nn.Module, Kwargs]]] = {
    "HunyuanVideo 1.5, image to video": lambda: hunyuan15(image_embeds=randn(1, 5, 12)),
    "HunyuanVideo 1.5, two prompts of other lengths": two_prompts,
    "FramePack, all of the text": lambda: framepack(encoder_attention_mask=lengths(6)),
    "FramePack, two prompts": lambda: framepack(batch=2, encoder_attention_mask=lengths(3, 5, batch=2)),
    "CogVideoX-2B, fewer frames": lambda: cogvideox(2, 8, 8),
    "CogVideoX-2B, image to video": lambda: cogvideox(2, 8, 12, channels=8),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_it_is_captured_and_exact(case: str) -> None:
    model, kwargs = (CASES | SLOW)[case]()
    model.eval().double()
    again = {k: torch.randn_like(v) if k == "hidden_states" else v for k, v in kwargs.items()}
    captured_equals(model, kwargs, again)


def test_kandinsky_5_nabla_is_captured_and_equal_bit_for_bit() -> None:
    """Its time embedding is float32 whatever the dtype of the rest, so that it does not run in float64."""
    model, kwargs = kandinsky5()
    model.eval()
    kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, kwargs)
    program = capture(model, (), kwargs)
    with torch.no_grad():
        assert errors(run_program(program, model, (), kwargs), model(**kwargs))[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (hunyuan15, lambda: {"image_embeds": randn(1, 5, 12)}),
        (framepack, lambda: {"encoder_attention_mask": lengths(2)}),
    ],
    ids=["HunyuanVideo 1.5", "FramePack"],
)
def test_what_is_decided_changes_from_call_to_call(make: Any, change: Any) -> None:
    model, kwargs = make()
    model.eval().double()
    twin = copy.deepcopy(model)
    sicompiler.compile_for_budget(model, 1)
    other = kwargs | change()
    plans = []
    with torch.no_grad():
        for each in (kwargs, other, kwargs, other):
            assert errors(model(**each), twin(**each))[1] <= FLOAT64
            plans.append(len(sicompiler.report(model).plans))
    assert plans == [1, 2, 2, 2]


def allegro_vae() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()  # fmt: skip


def test_a_module_that_only_runs_tiled_is_refused_with_advice_that_can_be_followed() -> None:
    vae = allegro_vae()
    with pytest.raises(sicompiler.CaptureError, match=r"Encoding without tiling[^$]*enable_tiling\(\)"):
        capture(vae, (torch.randn(1, 3, 5, 32, 32),))
    vae.enable_tiling()
    with pytest.raises(sicompiler.CaptureError, match=r"only runs tiled.*leave it uncompiled"):
        capture(vae, (torch.randn(1, 3, 5, 32, 32),))


def allegro(dtype: torch.dtype = torch.float32) -> Any:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=parts.TEXT,
    )  # fmt: skip
    vae = allegro_vae()
    vae.enable_tiling()
    return parts.quiet(
        diffusers.AllegroPipeline(
            tokenizer=parts.tokenizer(),
            text_encoder=parts.t5(dtype),
            vae=vae,
            transformer=transformer.eval(),
            scheduler=diffusers.DDIMScheduler(),
        )
    )


def test_a_decoder_that_only_runs_tiled_runs_untouched_in_a_pipeline() -> None:
    pipe = allegro()
    call = {
        "prompt": "a cat runs", "negative_prompt": "dog", "height": 16, "width": 16, "num_frames": 8,
        "num_inference_steps": 2, "max_sequence_length": parts.TOKENS, "output_type": "pt", "clean_caption": False,
    }  # fmt: skip

    def frames() -> torch.Tensor:
        result: torch.Tensor = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
        return result

    reference = frames()
    sicompiler.compile_for_budget(pipe, 1)
    assert errors(frames(), reference)[1] <= 1e-5
    (row,) = [row for row in sicompiler.report(pipe).phases if row.component == "vae.decode"]
    assert row.predicted_peak_bytes is None
    assert row.measured_peak_bytes is not None
    assert "only runs tiled" in row.note
    assert pipe.vae.use_tiling is True
