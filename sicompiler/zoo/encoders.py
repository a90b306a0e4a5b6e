"""The encoders of pipelines: classes of transformers with the configurations of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sicompiler.zoo.family import ExampleDraw, Inputs


@dataclass(frozen=True)
class Encoder:
    """What encodes the prompt or the image.

    Attributes:
        name: of the component in the pipeline.
        class_name: of transformers.
        config: what differs from the defaults of the class.
        inputs: makes the inputs of a call of it.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    inputs: Callable[[ExampleDraw], Inputs]


def _image(draw: ExampleDraw) -> Inputs:
    return (draw.normal(1, 3, 224, 224),), {}


def _prompt(tokens: int, *, mask: bool = False, **kwargs: Any) -> Callable[[ExampleDraw], Inputs]:
    def make(draw: ExampleDraw) -> Inputs:
        import torch

        ids = torch.zeros(1, tokens, dtype=torch.int64)
        return (ids,), {**({"attention_mask": torch.ones_like(ids)} if mask else {}), **kwargs}

    return make


LLAMA_TEMPLATE = 95  # tokens that HunyuanVideo puts in front of the prompt

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu",
}  # fmt: skip
_VISION_H = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
_LLAMA_8B = {
    "vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
_T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def clip_text(name: str = "text_encoder") -> Encoder:
    """CLIP ViT-L/14."""
    return Encoder(name, "CLIPTextModel", _CLIP_L, _prompt(77))


def open_clip_text() -> Encoder:
    """OpenCLIP ViT-H/14 without its last layer."""
    return Encoder("text_encoder", "CLIPTextModel", _CLIP_H, _prompt(77))


def open_clip_image() -> Encoder:
    """OpenCLIP ViT-H/14, the image side."""
    return Encoder("image_encoder", "CLIPVisionModelWithProjection", _VISION_H, _image)


def t5_xxl(tokens: int, *, mask: bool = False) -> Encoder:
    """T5 v1.1 XXL, the encoder."""
    return Encoder("text_encoder", "T5EncoderModel", _T5_XXL, _prompt(tokens, mask=mask))


def umt5_xxl() -> Encoder:
    """UMT5 XXL, the encoder."""
    return Encoder("text_encoder", "UMT5EncoderModel", _T5_XXL | {"vocab_size": 256384}, _prompt(512, mask=True))


def llama_8b() -> Encoder:
    """The language model of LLaVA-LLaMA-3 8B, behind HunyuanVideo's template of 95 tokens."""
    inputs = _prompt(256 + LLAMA_TEMPLATE, mask=True, output_hidden_states=True)
    return Encoder("text_encoder", "LlamaModel", _LLAMA_8B, inputs)


def encoder_of(name: str, class_name: str, config: Mapping[str, Any], tokens: int) -> Encoder | None:
    """An encoder of a folder and its call; None for a class whose calls are not known.

    Args:
        name: of the component.
        class_name: of transformers.
        config: its configuration.
        tokens: what the pipeline pads prompts to.
    """
    if class_name in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        return Encoder(name, class_name, config, _prompt(config.get("max_position_embeddings", 77)))
    if class_name in ("CLIPVisionModel", "CLIPVisionModelWithProjection"):
        side = config.get("image_size", 224)
        return Encoder(name, class_name, config, lambda draw: ((draw.normal(1, 3, side, side),), {}))
    if class_name in ("T5EncoderModel", "UMT5EncoderModel"):
        return Encoder(name, class_name, config, _prompt(tokens, mask=True))
    if class_name == "LlamaModel":
        inputs = _prompt(tokens + LLAMA_TEMPLATE, mask=True, output_hidden_states=True)
        return Encoder(name, class_name, config, inputs)
    return None
