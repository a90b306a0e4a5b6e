"""What a model peaks at as it is, simulated under fake tensors, beside what others measured on real cards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.capture import capture, weights_bytes
from sicompiler.pipelines.eager import eager_peak_bytes
from sicompiler.runtime.measure import measure_peak
from sicompiler.zoo.build import construct, fake_buffers_, new_fake_mode
from sicompiler.zoo.pipelines import build_pipeline, idle_weights

GIB = 2**30
CLOSE = 0.02
SMALL = 256  # bytes: the sum itself and what its kernel takes


@pytest.fixture(scope="module")
def qwen() -> tuple[nn.Module, FakeTensorMode]:
    """The VAE of Qwen-Image in half precision, full size, without memory."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        module = construct("AutoencoderKLQwenImage", {}, torch.float16)
    fake_buffers_(module, mode)
    return module, mode


# InvokeAI's pull request 9305: allocated on an RTX 4090.
@pytest.mark.parametrize(
    ("method", "height", "width", "measured_gib"),
    [
        ("decode", 512, 512, 1.274),
        ("decode", 768, 768, 2.563),
        ("decode", 1024, 1024, 4.369),
        ("decode", 1088, 1920, 8.468),
        ("decode", 1536, 1536, 9.532),
        ("decode", 2048, 2048, 16.754),
        ("encode", 512, 512, 0.900),
        ("encode", 1024, 1024, 2.879),
        ("encode", 1536, 1536, 6.179),
    ],
)
def test_a_decoder_as_measured(
    qwen: tuple[nn.Module, FakeTensorMode], method: str, height: int, width: int, measured_gib: float
) -> None:
    module, mode = qwen
    shape = (1, 16, 1, height // 8, width // 8) if method == "decode" else (1, 3, 1, height, width)
    with mode:
        x = torch.empty(shape, dtype=torch.float16)
    found = eager_peak_bytes(module, getattr(module, method), (x,), {"return_dict": False}, "cuda")
    assert found is not None
    assert found / GIB == pytest.approx(measured_gib, rel=CLOSE)


# The blog entry "video_gen" of Hugging Face: an A100, bfloat16, 121 frames of 512x768. With tiling, decoding takes less
# than denoising; with offloading too, the transformer is alone on the device.
@pytest.mark.parametrize(
    ("name", "tiled", "alone", "measured_gib"),
    [
        ("hunyuanvideo-pipeline", False, False, 60.09),
        ("hunyuanvideo-pipeline", True, False, 43.58),
        ("hunyuanvideo-pipeline", True, True, 28.87),
        ("ltx-video-pipeline", False, False, 17.75),
    ],
)
def test_a_pipeline_as_measured(name: str, tiled: bool, alone: bool, measured_gib: float) -> None:
    parts = build_pipeline(name, dtype="bfloat16", frames=121, height=512, width=768)
    weights = {part.component: weights_bytes(part.call.module, "cuda") for part in parts}
    weights |= idle_weights(name, "bfloat16", "cuda")
    peaks = []
    for part in parts:
        if part.phase == "decode" and tiled:
            continue
        call, method = part.call, getattr(part.call.module, part.method)
        own = eager_peak_bytes(call.module, method, call.args, call.kwargs, "cuda")
        assert own is not None
        others = sum(nbytes for component, nbytes in weights.items() if component != part.component)
        peaks.append(own + (0 if alone else others))
    assert max(peaks) / GIB == pytest.approx(measured_gib, rel=CLOSE)


def test_one_convolution_as_measured() -> None:
    """PyTorch's issue 95024: 12.874233344 GB at most on an A100."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        layer = nn.Conv3d(64, 32, 3, padding=1, dtype=torch.float16).eval()
        x = torch.empty(1, 64, 361, 370, 251, dtype=torch.float16)
    found = eager_peak_bytes(layer, layer.forward, (x,), {}, "cuda")
    assert found == pytest.approx(12.874233344e9, rel=CLOSE)


class Keeps(nn.Module):
    """A local variable keeps what nobody needs any more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x + 1
        y = kept.repeat(4)
        z = y * 2
        return z.sum()


class LetsGo(nn.Module):
    """The same without."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x + 1).repeat(4)
        y = y * 2
        return y.sum()


@pytest.mark.parametrize(("model", "copies"), [(Keeps(), 1 + 1 + 4 + 4), (LetsGo(), 1 + 4 + 4)])
def test_python_lets_go_when_the_last_name_is_gone(model: nn.Module, copies: int) -> None:
    x = torch.randn(100_000)
    found = eager_peak_bytes(model, model.forward, (x,), {}, "cpu")
    with measure_peak("cpu") as peak, torch.no_grad():
        model(x)
    assert found is not None
    assert found == pytest.approx(copies * x.nbytes, abs=SMALL)
    assert found - x.nbytes == pytest.approx(peak.bytes, abs=SMALL)


def test_models_without_memory_have_the_mode_of_a_trace() -> None:
    """Else torch looks for the layouts of results among those of another mode."""
    mode = new_fake_mode()
    with mode:
        x = torch.empty(8)
    ours, theirs = mode.shape_env, capture(LetsGo(), (x,)).fake_mode.shape_env
    assert ours is not None
    assert theirs is not None
    assert ours.settings == theirs.settings


def test_what_cannot_be_rehearsed_is_not_known() -> None:
    class Outside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float((x + 1).numpy().sum())

    model = Outside()
    assert eager_peak_bytes(model, model.forward, (torch.randn(200_000),), {}, "cpu") is None
