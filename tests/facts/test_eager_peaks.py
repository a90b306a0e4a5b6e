"""What a model peaks at as it is, simulated under fake tensors, beside what others measured on real cards."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sicompiler.capture import capture
from sicompiler.pipelines.eager import eager_peak_bytes
from sicompiler.runtime.measure import measure_peak
from sicompiler.zoo.build import construct, fake_buffers_, new_fake_mode

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
        ("decode", 1024, 1024, 4.369),
        ("decode", 1088, 1920, 8.468),
        ("encode", 512, 512, 0.900),
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


@pytest.mark.parametrize("frozen", [False, True])
def test_the_collector_is_left_as_it_was(frozen: bool) -> None:
    model, x = LetsGo(), torch.randn(8)
    shared = gc.get_freeze_count()  # what conftest has frozen
    gc.unfreeze()
    try:
        if frozen:
            gc.freeze()
        kept = gc.get_freeze_count()
        eager_peak_bytes(model, model.forward, (x,), {}, "cpu")
        assert gc.get_freeze_count() == kept
        assert (kept > 0) == frozen
    finally:
        if shared:
            gc.freeze()
        else:
            gc.unfreeze()


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
