"""Quantised weights: refused by the name of their scheme where a plan is needed, run untouched in encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.capture import weights_bytes
from sicompiler.capture.quantised import scheme_of, storage_bytes
from tests.mini_pipeline import MiniText, close, mini, picture


class Packed(torch.Tensor):
    """Eight bits an entry and one scale, told to torch: as torchao and quanto make them."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Packed:
        made: Any = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)
        made.codes, made.scale = codes, scale
        return made  # type: ignore[no-any-return]

    @classmethod
    def of(cls, weight: torch.Tensor) -> nn.Parameter:
        scale = weight.detach().abs().max() / 127
        return nn.Parameter(cls((weight.detach() / scale).round().to(torch.int8), scale), requires_grad=False)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> Packed:
        return Packed(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(func(args[0].codes), args[0].scale)
        plain = torch.utils._pytree.tree_map_only(cls, lambda t: t.codes.to(t.scale.dtype) * t.scale, (args, kwargs))
        return func(*plain[0], **(plain[1] or {}))


class Coded(nn.Parameter):
    """Codes in place of the weight, with a table beside them: as GGUF and bitsandbytes keep them."""

    table: Any

    @staticmethod
    def __new__(cls, codes: torch.Tensor, requires_grad: bool = False) -> Coded:
        made: Coded = torch.Tensor._make_subclass(cls, codes, False)
        return made


class CodedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: Any = self.weight
        return nn.functional.linear(x, weight.table.values[weight.as_subclass(torch.Tensor).long()], self.bias)


class Table:
    def __init__(self, values: torch.Tensor) -> None:
        self.values = values


def pack(part: Any) -> None:
    for layer in part.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight = Packed.of(layer.weight)


def code(part: Any) -> None:
    for name, layer in list(part.named_children()):
        if isinstance(layer, nn.Linear):
            made = CodedLinear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
            made.bias = layer.bias
            weight = Coded((torch.arange(layer.weight.numel()) % 16).to(torch.uint8).reshape(layer.weight.shape))
            weight.table = Table(torch.linspace(-1, 1, 16, dtype=layer.weight.dtype))
            made.weight = weight
            setattr(part, name, made)


def cast(part: Any) -> None:
    part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float64)


def loaded(part: Any) -> None:
    class Quantizer:
        def __init__(self) -> None:
            self.quantization_config = type("Config", (), {"quant_method": "gptq"})()

    part.hf_quantizer = Quantizer()


SCHEMES = {
    "pack": (pack, r"\(.*weight is of class Packed\)"),
    "code": (code, r"\(.*weight is of class Coded\)"),
    "cast": (cast, r"\(layerwise casting: .* is stored as float8_e4m3fn\)"),
    "loaded": (loaded, r"\(gptq: the model was loaded by .*Quantizer\)"),
}


CASES = [*((scheme, False) for scheme in SCHEMES), ("pack", True), ("cast", True)]


@pytest.mark.parametrize(("scheme", "after"), CASES)
def test_a_denoiser_is_refused_before_planning(scheme: str, after: bool) -> None:
    change, words = SCHEMES[scheme]
    pipe = mini()
    if after:
        sicompiler.compile_for_budget(pipe, "2MiB")
        pipe(picture())
    change(pipe.unet)
    with pytest.raises(sicompiler.BadInput, match=rf"the weights of \S*unet are quantised {words}") as caught:
        sicompiler.compile_for_budget(pipe, "2MiB") if not after else pipe(picture())
    assert "\n" not in str(caught.value)


def test_a_vae_is_refused_in_both_directions_and_a_module_too() -> None:
    pipe = mini()
    pack(pipe.vae)
    with pytest.raises(sicompiler.BadInput, match=r"the weights of MiniPipeline\.vae are quantised"):
        sicompiler.compile_for_budget(pipe, "2MiB")
    layer = nn.Sequential(nn.Linear(8, 8))
    pack(layer)
    with pytest.raises(sicompiler.BadInput, match="the weights of Sequential are quantised"):
        sicompiler.compile_for_budget(layer, "2MiB")
    later = sicompiler.compile_for_budget(nn.Sequential(nn.Linear(8, 8)), "2MiB")
    later(torch.ones(2, 8))
    pack(later)
    with pytest.raises(sicompiler.BadInput, match=r"the weights of Sequential are quantised \(0\.weight is of class"):
        later(torch.ones(2, 8))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_encoder_runs_untouched_within_the_budget(scheme: str) -> None:
    change, _ = SCHEMES[scheme]
    pipe = mini()
    change(pipe.text_encoder)
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, "2MiB")
    assert close(pipe(picture()), reference)
    row = sicompiler.report(pipe).phases[0]
    assert row.component == "text_encoder"
    assert "quantised" in row.note
    assert row.fits
    found = sicompiler.verify(pipe, ((picture(),), {}))
    assert found.fits, str(found)
    assert found.bitwise
    sicompiler.release(pipe)
    assert torch.equal(pipe(picture()), reference)


class Heavy(MiniText):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(512, 512)


@pytest.mark.parametrize("offload", ["auto", "none"])
def test_what_a_quantised_encoder_takes_is_what_it_has_inside(offload: Any) -> None:
    """A quarter of a MiB of codes stands for two of float64."""
    pipe = mini(text_encoder=Heavy())
    pack(pipe.text_encoder)
    assert 2**18 < weights_bytes(pipe.text_encoder) < 2**18 + 8192
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, "400KiB", offload=offload)
    assert close(pipe(picture()), reference)
    sicompiler.compile_for_budget(pipe, "200KiB", offload=offload)
    with pytest.raises(sicompiler.OverBudget, match=r"text_encoder needs 26. KiB at least.*is of class Packed"):
        pipe(picture())


@pytest.mark.parametrize("scheme", ["pack", "code"])
def test_an_idle_quantised_encoder_goes_and_comes_back(scheme: str) -> None:
    change, _ = SCHEMES[scheme]
    pipe = mini(text_encoder=Heavy())
    change(pipe.text_encoder)
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, "330KiB")
    for _ in range(2):
        assert close(pipe(picture()), reference)
    rows = {row.component: row for row in sicompiler.report(pipe).phases}
    assert "text_encoder" in rows["text_encoder"].resident
    assert "text_encoder" not in rows["unet"].resident
    assert all(row.fits for row in rows.values())
    sicompiler.release(pipe)
    assert torch.equal(pipe(picture()), reference)


def test_bytes_beside_the_codes_count() -> None:
    part = nn.Sequential(nn.Linear(32, 32))
    code(part)
    table, bias = 16 * 4, 32 * 4
    assert weights_bytes(part) == 32 * 32 + table + bias


def test_plain_weights_are_no_scheme() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LazyLinear(3))
    model.half()
    assert scheme_of(model) == ""
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert scheme_of(nn.Linear(2, 2)) == ""


def _torchao(part: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(part, quantization.Int8WeightOnlyConfig())


def _quanto(part: Any) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(part, weights=quanto.qint8)
    quanto.freeze(part)


def _quanto_unfrozen(part: Any) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(part, weights=quanto.qint8)


def _bitsandbytes(part: Any) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    for name, layer in list(part.named_children()):
        if isinstance(layer, nn.Linear):
            made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, True, has_fp16_weights=False)
            made.weight = bnb.nn.Int8Params(layer.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
            setattr(part, name, made)
    part.to("cpu")


def _gguf(part: Any) -> None:
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    for name, layer in list(part.named_children()):
        if isinstance(layer, nn.Linear) and layer.in_features % 32 == 0:
            made = GGUFLinear(layer.in_features, layer.out_features, True, compute_dtype=layer.weight.dtype)
            raw = gguf.quants.quantize(layer.weight.detach().float().numpy(), kind)
            made.weight = GGUFParameter(torch.from_numpy(raw.copy()), quant_type=kind)
            made.bias = layer.bias
            setattr(part, name, made)


REAL: dict[str, Callable[[Any], None]] = {
    "torchao": _torchao,
    "quanto": _quanto,
    "quanto, not frozen": _quanto_unfrozen,
    "bitsandbytes": _bitsandbytes,
    "GGUF": _gguf,
}


class Encoder(MiniText):
    """Has a layer that every scheme takes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = super().forward(ids)
        found = found + self.down(torch.relu(self.up(found)))
        return found


@pytest.mark.parametrize("name", REAL)
def test_real_packages_are_named(name: str) -> None:
    """Where they are installed."""
    part = Encoder()
    plain = sum(storage_bytes(part.parameters()).values())
    REAL[name](part)
    assert scheme_of(part).startswith(f"{name.split(',')[0]}: ")
    assert (weights_bytes(part) < plain) == ("not frozen" not in name)
    pipe = mini(torch.float32, text_encoder=part)
    reference = pipe(picture(dtype=torch.float32))
    sicompiler.compile_for_budget(pipe, "2MiB")
    assert torch.equal(pipe(picture(dtype=torch.float32)), reference)
    assert sicompiler.report(pipe).fits
