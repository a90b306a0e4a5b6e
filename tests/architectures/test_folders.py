"""Folders of pipelines: geometry read from the configurations in them, every component planned, counted or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sicompiler.cli
from sicompiler.errors import BadInput
from sicompiler.zoo.folders import read_folder
from sicompiler.zoo.geometry import Sizes
from sicompiler.zoo.inputs import FAMILIES
from sicompiler.zoo.load import resolve
from sicompiler.zoo.pipelines import build_pipeline, idle_weights, pipeline_named
from tests.pipelines import PIPELINES

WAN22 = {  # Wan2.2-TI2V-5B as published
    "transformer": {
        "_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "ffn_dim": 14336, "in_channels": 48,
        "num_attention_heads": 24, "num_layers": 30, "out_channels": 48, "patch_size": [1, 2, 2], "text_dim": 4096,
    },
    "vae": {
        "_class_name": "AutoencoderKLWan", "base_dim": 160, "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4],
        "in_channels": 12, "is_residual": True, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
        "num_res_blocks": 2, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
        "scale_factor_temporal": 4, "temperal_downsample": [False, True, True], "z_dim": 48,
    },
    "text_encoder": {
        "architectures": ["UMT5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64,
        "feed_forward_proj": "gated-gelu", "model_type": "umt5", "num_layers": 24, "vocab_size": 256384,
    },
}  # fmt: skip
INDEX = {
    "_class_name": "WanPipeline", "expand_timesteps": True, "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}  # fmt: skip


def write(folder: Path, index: dict[str, Any] | None, configs: dict[str, Any]) -> Path:
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    if index is not None:
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("part", ["", "transformer"])
def test_wan22_is_seen_behind_its_own_vae_with_a_step_for_every_token(tmp_path: Path, part: str) -> None:
    folder = write(tmp_path, INDEX, WAN22) / part
    call = resolve(str(folder), frames=121, height=704, width=1280)
    assert tuple(call.kwargs["hidden_states"].shape) == (1, 48, 31, 44, 80)
    assert tuple(call.kwargs["timestep"].shape) == (1, 31 * 22 * 40)
    assert round(sum(p.numel() for p in call.module.parameters()) / 1e6) == 5000
    with pytest.raises(BadInput, match="a height that is a multiple of 32, got 720; try 704 or 736"):
        resolve(str(folder), height=720)


def test_wan22_is_a_pipeline_of_three_phases(tmp_path: Path) -> None:
    folder = str(write(tmp_path, INDEX, WAN22))
    parts = build_pipeline(folder, frames=121, height=704, width=1280)
    assert [(part.phase, part.label) for part in parts] == [
        ("encode", "text_encoder"), ("denoise", "transformer"), ("decode", "vae.decode"),
    ]  # fmt: skip
    assert tuple(parts[2].call.args[0].shape) == (1, 48, 31, 44, 80)


def test_latents_of_an_unknown_vae_are_refused(tmp_path: Path) -> None:
    write(tmp_path, None, {"transformer": WAN22["transformer"]})
    with pytest.raises(BadInput, match="have 48 channels, not the 16 of the usual VAE"):
        resolve(str(tmp_path / "transformer"))


def class_of(pipe: Any) -> str:
    """The class of what denoises in a pipeline."""
    return type(pipe.components.get("unet") or pipe.transformer).__name__


@pytest.mark.parametrize("name", PIPELINES)
def test_the_geometry_of_a_folder_is_that_of_the_pipeline_itself(name: str, tmp_path: Path) -> None:
    pipe = PIPELINES[name][0](torch.float32)
    pipe.save_config(tmp_path)
    for component, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            found: Any = part
            (found.save_config if hasattr(found, "save_config") else found.config.save_pretrained)(tmp_path / component)
    if class_of(pipe) not in FAMILIES:
        with pytest.raises(BadInput, match=f"{class_of(pipe)}, for which no example inputs are known"):
            read_folder(tmp_path)
        return
    known = read_folder(tmp_path)
    geometry = known.family.geometry_of(known.config)
    assert geometry.spatial == _of(pipe, "vae_scale_factor_spatial", "vae_spatial_compression_ratio",
                                   "vae_spatial_scale_factor", "vae_scale_factor")  # fmt: skip
    assert geometry.temporal == _of(pipe, "vae_scale_factor_temporal", "vae_temporal_compression_ratio",
                                    "vae_temporal_scale_factor")  # fmt: skip
    geometry.latent(known.sizes, known.config, name)  # its own default sizes work
    if "controlnet" in pipe.components:
        with pytest.raises(BadInput, match="its controlnet is a ControlNetModel, whose calls are not known"):
            pipeline_named(str(tmp_path))
        return
    preset = pipeline_named(str(tmp_path))
    models = {n for n, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    planned = {row.name for row in preset.encoders} | {preset.component, "vae"} | {row[0] for row in preset.more}
    assert planned | {row[0] for row in preset.idle} == models, "every component is planned or counted"
    assert {n for n, _ in preset.unplanned} <= models | {"vae.encode"}


def _of(pipe: Any, *names: str) -> int:
    """The first attribute a pipeline has of some; 1 for none."""
    return next((getattr(pipe, name) for name in names if hasattr(pipe, name)), 1)


def tiny(folder: Path, **parts: Any) -> Path:
    """A pipeline of few layers, from its configurations alone."""
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    channels = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    unet = {"cross_attention_dim": 8, "attention_head_dim": 4, "sample_size": 8}
    blocks = {"down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
              "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"]}  # fmt: skip
    vae = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    configs = {
        "unet": {"_class_name": "UNet3DConditionModel", **channels, **unet, **blocks},
        "vae": {"_class_name": "AutoencoderKL", **channels, **vae},
        "text_encoder": {"vocab_size": 99, "max_position_embeddings": 7, **text},
    }
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    for name, (class_name, config) in parts.items():
        index[name] = ["diffusers", class_name]
        configs[name] = config
    return write(folder, index, configs)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = sicompiler.cli.run(arguments)
    return (status, *capsys.readouterr())


def test_a_folder_of_a_pipeline_is_planned_phase_by_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny(tmp_path))
    sizes = ("--gb", "1", "--frames", "2", "--height", "16", "--width", "16", "--json")
    status, out, err = run(capsys, "plan", folder, *sizes)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [row["component"] for row in found["phases"]] == ["text_encoder", "unet", "vae.decode"]
    assert found["unplanned"] == []
    assert sorted(found["phases"][0]["resident"]) == ["text_encoder", "unet", "vae"]
    assert resolve(folder, height=16, width=16).args[0].shape[-2:] == (8, 8), "the VAE halves sides once"
    status, _, err = run(capsys, "plan", folder, "--output", str(tmp_path / "p.json"))
    assert status == 2
    assert "is a pipeline" in err


def test_a_single_model_of_a_pipeline_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny(tmp_path))
    sizes = ("--frames", "2", "--height", "16", "--width", "16")
    status, _, err = run(capsys, "explain", folder, "--rules", *sizes)
    assert (status, err) == (0, f"sicompiler: {folder} is a whole pipeline; this is its unet alone\n")
    status, _, err = run(capsys, "explain", f"{folder}/vae", "--rules", *sizes)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"vae": ("AutoencoderKLAllegro", {})}, "its vae is a AutoencoderKLAllegro, whose calls are not known"),
        ({"transformer": ("AllegroTransformer3DModel", {})}, "its transformer is a AllegroTransformer3DModel"),
        ({"controlnet": ("ControlNetModel", {})}, "its controlnet is a ControlNetModel"),
    ],
)
def test_a_component_that_cannot_be_planned_is_named(
    parts: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny(tmp_path, **parts))
    status, out, err = run(capsys, "plan", folder, "--gb", "1")
    assert (status, out) == (2, "")
    assert says in err
    assert f"plan a component alone: {folder}" in err


def test_an_encoder_of_unknown_calls_counts_and_is_named(tmp_path: Path) -> None:
    folder = tiny(tmp_path, text_encoder_2=("AutoencoderKL", {"_class_name": "AutoencoderKL"}))
    preset = pipeline_named(str(folder))
    assert preset.unplanned == (
        ("text_encoder_2", "no example inputs are known of AutoencoderKL: only its weights count"),
    )
    assert set(idle_weights(str(folder))) == {"text_encoder_2"}


def test_a_missing_component_and_an_unknown_pipeline_are_named(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "NoSuchPipeline"}))
    with pytest.raises(BadInput, match="of class NoSuchPipeline, which diffusers"):
        pipeline_named(str(folder))
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(BadInput, match=r"its vae has no config\.json"):
        pipeline_named(str(folder))


def test_default_sizes_are_those_the_model_can_take(tmp_path: Path) -> None:
    known = read_folder(write(tmp_path, INDEX, WAN22))
    assert known.sizes == Sizes(1, 81, 480, 832)
    assert known.sizes.height % known.family.geometry_of(known.config).multiple == 0
