"""Components of tiny diffusers pipelines, with random weights: text and image encoders, tokenizers, denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sicompiler.zoo.build import construct, randomize_
from tests.zoo import TINY

TEXT = 16  # width of prompts in the zoo's tiny denoisers
TOKENS = 8


def component(class_name: str, config: Mapping[str, Any], dtype: torch.dtype, seed: int = 0) -> Any:
    """A model of diffusers with random weights."""
    module = construct(class_name, config, dtype)
    randomize_(module, seed)
    return module


def denoiser(name: str, dtype: torch.dtype, **changes: Any) -> Any:
    """A tiny denoiser of the zoo."""
    row = TINY[name]
    module = component(row.class_name, {**row.config, **changes}, dtype)
    for child in module.modules():
        if row.norm_groups is not None and isinstance(child, nn.GroupNorm):
            child.num_groups = row.norm_groups
    return module


def softened(vae: Any, name: str, by: float = 0.2) -> Any:
    """A VAE whose last layer gives little: clipped frames would be equal whatever is computed."""
    with torch.no_grad():
        for parameter in vae.get_submodule(name).parameters():
            parameter.mul_(by)
    return vae


def tokenizer() -> Any:
    """A tokenizer of whole words that knows five of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "cat", "runs", "dog", "sleeps"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=TOKENS,
    )  # fmt: skip


def finished(module: Any, dtype: torch.dtype) -> Any:
    """A model of transformers, ready to run."""
    module = module.to(dtype).eval()
    randomize_(module, 3)
    return module


def clip_text(dtype: torch.dtype, *, nested: bool = False) -> Any:
    """CLIP's text encoder; `nested` with the attribute that its layers were in before transformers 5."""
    from transformers import CLIPTextConfig, CLIPTextModel

    class Nested(CLIPTextModel):  # type: ignore[misc]
        @property
        def text_model(self) -> Any:
            return self

    config = CLIPTextConfig(
        vocab_size=16, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=TEXT, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return finished((Nested if nested else CLIPTextModel)(config), dtype)


def clip_vision(dtype: torch.dtype, *, projection: bool = True) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=TEXT, intermediate_size=32, projection_dim=TEXT, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return finished((CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config), dtype)


def image(width: int, height: int, seed: int = 5) -> Any:
    """A picture of noise."""
    import PIL.Image

    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return PIL.Image.fromarray(pixels.numpy())


def feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size=32, crop_size=32)


def vae_2d(dtype: torch.dtype) -> Any:
    return component(
        "AutoencoderKL",
        {
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
        },
        dtype,
    )


def t5(dtype: torch.dtype, *, per_layer_bias: bool = False) -> Any:
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 16, "d_model": TEXT, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = UMT5EncoderModel(UMT5Config(**sizes)) if per_layer_bias else T5EncoderModel(T5Config(**sizes))
    return finished(model, dtype)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
