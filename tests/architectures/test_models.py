"""The model zoo: parameter counts, sizes, what the errors say, and that every tiny model runs and exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor

from sicompiler.capture.entry import bound_method
from sicompiler.errors import BadInput
from sicompiler.zoo import ModelCall, Sizes, build_preset, known_presets, resolve
from sicompiler.zoo.build import construct
from sicompiler.zoo.inputs import FAMILIES
from sicompiler.zoo.presets import PRESETS
from tests.zoo import TINY, method_of, tiny

# The first tensor input at the default sizes: the table of the design.
FIRST_INPUT = {
    "svd": (2, 14, 8, 72, 128),
    "svd-xt": (2, 25, 8, 72, 128),
    "animatediff": (2, 4, 16, 72, 128),
    "modelscope": (2, 4, 16, 32, 32),
    "i2vgenxl": (2, 4, 16, 88, 160),
    "cogvideox-2b": (2, 13, 16, 60, 90),
    "wan2.1-1.3b": (1, 16, 21, 60, 104),
    "wan2.1-14b": (1, 16, 21, 90, 160),
    "ltx-video": (2, 6144, 128),
    "hunyuanvideo": (1, 16, 33, 90, 160),
    "mochi": (2, 12, 14, 60, 106),
    "svd-vae": (14, 4, 72, 128),
    "sd-vae": (16, 4, 72, 128),
    "wan-vae": (1, 16, 21, 60, 104),
    "cogvideox-vae": (1, 16, 13, 60, 90),
    "hunyuanvideo-vae": (1, 16, 17, 64, 64),
    "ltx-vae": (1, 128, 16, 16, 24),
    "mochi-vae": (1, 12, 14, 60, 106),
}


def first_input(call: ModelCall) -> torch.Tensor:
    tensor = call.args[0] if call.args else call.kwargs["hidden_states"]
    assert isinstance(tensor, torch.Tensor)
    return tensor


@pytest.mark.parametrize("name", known_presets())
def test_a_preset_has_the_parameters_and_inputs_of_the_real_model(name: str) -> None:
    call = build_preset(name)
    millions = sum(p.numel() for p in call.module.parameters()) / 1e6
    assert millions == pytest.approx(PRESETS[name].parameters, abs=0.1)
    assert tuple(first_input(call).shape) == FIRST_INPUT[name]
    assert first_input(call).dtype is torch.float16
    tensors = [*call.module.parameters(), *call.module.buffers(), *pytree.tree_leaves((call.args, call.kwargs))]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    assert all(isinstance(t, FakeTensor) and t.fake_mode is call.fake_mode for t in tensors)
    assert not call.module.training
    assert torch.get_default_dtype() is torch.float32


def test_a_preset_runs_under_its_fake_mode() -> None:
    call = build_preset("svd-xt", batch=1, frames=3, height=136, width=240, dtype="bfloat16")
    assert call.sizes == Sizes(1, 3, 136, 240)
    assert call.fake_mode is not None
    with torch.no_grad(), call.fake_mode:
        (out,) = call.module(*call.args, **call.kwargs)
    assert (tuple(out.shape), out.dtype) == ((1, 3, 4, 17, 30), torch.bfloat16)


def test_importing_the_zoo_is_fast_because_it_imports_no_torch() -> None:
    code = "import sicompiler.zoo, sys; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "sizes", "says"),
    [
        ("svd", {"height": 570}, "multiple of 8, got 570; try 568 or 576"),
        ("wan2.1-1.3b", {"width": 840}, "multiple of 16, got 840; try 832 or 848"),
        ("wan2.1-1.3b", {"frames": 80}, r"frames = 4 \* k \+ 1, got 80; try 77 or 81"),
        ("ltx-video", {"height": 16}, "multiple of 32, got 16; try 32"),
        ("mochi", {"frames": 84}, r"frames = 6 \* k \+ 1, got 84; try 79 or 85"),
        ("animatediff", {"frames": 33}, "at most 32 frames, got 33"),
        ("wan-vae", {"frames": 80}, r"frames = 4 \* k \+ 1, got 80; try 77 or 81"),
        ("svd", {"batch": 0}, "batch must be a positive whole number, got 0"),
        ("svd", {"dtype": "fp8"}, "unknown dtype 'fp8'; known: float16"),
        ("svdxt", {}, "unknown preset 'svdxt'; did you mean 'svd-xt'.*known presets: svd, svd-xt"),
    ],
)
def test_what_a_model_cannot_take_is_refused_with_what_it_can(name: str, sizes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        resolve(name, **sizes)


def test_the_default_dtype_is_restored_when_a_class_refuses_its_configuration() -> None:
    with pytest.raises(BadInput, match="UNet3DConditionModel refuses its configuration: ValueError"):
        construct("UNet3DConditionModel", {"block_out_channels": (8, 16)}, torch.float16)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "cogvideox-2b", "animatediff"])
def test_precisions_are_those_of_from_pretrained(name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    row = TINY[name]
    saved: Any = tiny(name, dtype=torch.float32)[0]
    saved.save_pretrained(tmp_path)
    loaded = getattr(diffusers, row.class_name).from_pretrained(tmp_path, torch_dtype=torch.float16)
    ours = construct(row.class_name, row.config, torch.float16)
    dtypes = [{path: t.dtype for path, t in [*m.named_parameters(), *m.named_buffers()]} for m in (loaded, ours)]
    assert dtypes[0] == dtypes[1]


# Folders and functions


def write_folder(folder: Path, name: str, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = {**TINY[name].config, "_class_name": TINY[name].class_name, "_diffusers_version": "0.30.0", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_component_folder_needs_its_configuration_only(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "unet", "svd", num_frames=7)
    call = resolve(str(folder), height=64, width=64)
    assert call.sizes == Sizes(2, 7, 64, 64)
    assert tuple(first_input(call).shape) == (2, 7, 8, 8, 8)
    config: Any = call.module.config
    assert config["cross_attention_dim"] == 16


def test_a_pipeline_folder_leads_to_its_denoiser(tmp_path: Path) -> None:
    write_folder(tmp_path / "transformer", "cogvideox-2b")
    index = {
        "_class_name": "CogVideoXPipeline",
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    call = resolve(str(tmp_path), fake=False, dtype="float32")
    assert call.sizes == Sizes(2, 9, 64, 96)
    assert type(call.module).__name__ == "CogVideoXTransformer3DModel"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "there is no .*config.json"),
        ({"config.json": "{"}, "can't be read as JSON"),
        ({"config.json": "[1]"}, "must hold a JSON object"),
        ({"config.json": "{}"}, "has no _class_name"),
        ({"config.json": '{"_class_name": "UNet9D"}'}, "class UNet9D, for which no example inputs are known"),
        ({"model_index.json": '{"vae": ["diffusers", "X"]}'}, "has no unet or transformer, only vae"),
        ({"model_index.json": '{"unet": ["diffusers", "X"]}'}, "there is no .*unet.config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(files: dict[str, str], says: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=says):
        resolve(str(tmp_path))


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no folder stabilityai/svd.*downloaded first"):
        resolve("stabilityai/svd")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        resolve(str(tmp_path / "file"))


FUNCTIONS = """
import torch

def good(frames=4):
    return torch.nn.Linear(3, 3), (torch.zeros(frames, 3),), {}

def fails():
    raise RuntimeError("no luck")

def pair():
    return torch.nn.Linear(3, 3), ()

def no_module():
    return "unet", (), {}

def bad_args():
    return torch.nn.Linear(3, 3), torch.zeros(3), {}

def bad_kwargs():
    return torch.nn.Linear(3, 3), (), [1]

value = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_models_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_function_of_the_current_folder_is_called_with_the_sizes(user_module: str) -> None:
    before = list(sys.path)
    call = resolve(f"{user_module}:good", frames=6)
    assert tuple(first_input(call).shape) == (6, 3)
    assert call.sizes is None
    assert call.fake_mode is None
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "sizes", "says"),
    [
        ("good", {"height": 8}, "takes no height"),
        ("fails", {}, r"raised RuntimeError: no luck \(.*user_models_.*py:8\)"),
        ("pair", {}, r"must return \(module, args, kwargs\), it returned a tuple of 2"),
        ("no_module", {}, "must return a torch.nn.Module first, it returned a str"),
        ("bad_args", {}, "positional inputs second, it returned a Tensor"),
        ("bad_kwargs", {}, "inputs by name third, it returned a list"),
        ("absent", {}, "has no 'absent'"),
        ("value", {}, "is a int, not a function"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(
    function: str, sizes: dict[str, Any], says: str, user_module: str
) -> None:
    with pytest.raises(BadInput, match=says):
        resolve(f"{user_module}:{function}", **sizes)


def test_a_module_that_is_missing_or_does_not_import_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="there is no module 'nowhere'"):
        resolve("nowhere.at_all:build")
    Path("broken_user_module.py").write_text("import not_installed_at_all")
    with pytest.raises(
        BadInput, match=r"importing broken_user_module raised ModuleNotFoundError.*not_installed_at_all"
    ):
        resolve("broken_user_module:build")


# The tiny models


def test_every_preset_has_a_tiny_model_of_its_class() -> None:
    assert {name: row.class_name for name, row in TINY.items()} == {n: p.class_name for n, p in PRESETS.items()}
    assert {row.class_name for row in TINY.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_runs(name: str) -> None:
    module, args, kwargs = tiny(name)
    assert sum(p.numel() for p in module.parameters()) < 2e6
    assert all(p.all() for p in module.parameters()), "a parameter is zero"
    with torch.no_grad():
        (out,) = bound_method(module, method_of(name))(*args, **kwargs)
    assert out.dtype is torch.float64
    assert out.isfinite().all()
    assert 0.1 < out.std() < 10
    again, args, kwargs = tiny(name, return_dict=True)
    with torch.no_grad():
        assert torch.equal(bound_method(again, method_of(name))(*args, **kwargs).sample, out)


# Weights that don't count in the real model either: softmax over SVD's one image token hides queries and keys, and the
# last block of Mochi throws its text away.
IDLE = {
    "svd-xt": r".*attn2\.to_[qk]\.weight",
    "mochi": r"transformer_blocks\.1\.attn1\.add_q_proj\.weight",
}
ENCODER = r"(encoder|quant_conv)\..*"  # no part of a decoder


@pytest.mark.parametrize("name", TINY)
def test_every_weight_of_a_tiny_model_counts(name: str) -> None:
    latent: dict[str, Any] = {} if method_of(name) == "decode" else {"batch": 1, "frames": 2, "height": 4, "width": 6}
    module, args, kwargs = tiny(name, **latent)
    (out,) = bound_method(module, method_of(name))(*args, **kwargs)
    out.square().sum().backward()
    largest = {path: float(p.grad.abs().max()) if p.grad is not None else 0.0 for path, p in module.named_parameters()}
    weights = [path for path, p in module.named_parameters() if p.ndim >= 2 or p.numel() == 1]
    idle = [path for path in weights if not largest[path] > 1e-9 * max(largest.values())]
    expected = ENCODER if method_of(name) == "decode" else IDLE.get(name, "")
    assert [path for path in idle if not re.fullmatch(expected, path)] == []
