"""The parts of the demo pipeline, untrained: AnimateDiff's classes, narrow and shallow, for clips of `shapes`."""

from __future__ import annotations

import re
from typing import Any

import torch

from sicompiler.demo.shapes import SIZE
from sicompiler.demo.words import all_scenes
from sicompiler.errors import BadInput

MAX_TOKENS = 12  # a caption takes 7: start, five words, end
TEXT_WIDTH = 64
WIDTHS = (32, 64)  # channels of the UNet at 12x12 and at 6x6
HEADS = 4
GROUPS = 8  # of every group norm
VAE_WIDTHS = (16, 24, 32)
LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 2 ** (len(VAE_WIDTHS) - 1)
START, END = "<|startoftext|>", "<|endoftext|>"


def import_parts() -> tuple[Any, Any]:
    """The modules `diffusers` and `transformers`.

    Raises:
        BadInput: one of them is not installed.
    """
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise BadInput(
            f"the demo pipeline needs diffusers and transformers: pip install 'sicompiler[diffusers]' ({error})"
        ) from error
    return diffusers, transformers


def tokenizer() -> Any:
    """A `CLIPTokenizer` with one token for every word of the grammar; other words fall into letters.

    Merges are added word by word, each time to what the merges so far leave of it. Later merges rank lower, so that a
    word which is whole stays whole.
    """
    _, transformers = import_parts()
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []

    def made() -> Any:
        numbered = {token: number for number, token in enumerate([*vocabulary, START, END])}
        return transformers.CLIPTokenizer(numbered, list(merges), model_max_length=MAX_TOKENS)

    for word in sorted({word for scene in all_scenes() for word in scene.caption.split()}):
        whole, *rest = made().tokenize(word)
        for piece in rest:
            merges.append((whole, piece))
            whole += piece
            if whole not in vocabulary:
                vocabulary.append(whole)
    return made()


def text_encoder(words: Any) -> Any:
    """A `CLIPTextModel` of two layers for the tokens of `tokenizer()`, which stays as it is drawn.

    Its last hidden states tell all captions apart: with words this large, each place mostly says which word is there.
    Trained along, the encoder learned from single frames to say little but the colour, and clips didn't undo that.
    """
    _, transformers = import_parts()
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = transformers.CLIPTextModel(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model


def vae() -> Any:
    """An `AutoencoderKL` from (3, 48, 48) to (4, 12, 12)."""
    diffusers, _ = import_parts()
    return diffusers.AutoencoderKL(
        sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_WIDTHS),
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        scaling_factor=1.0,  # `standardize_` makes latents of unit variance
    )


def standardize_(model: Any, latents: torch.Tensor) -> None:
    """Change a VAE so that its latents have mean 0 and variance 1 in every channel, and pictures stay as they are.

    The 1x1 convolutions that end the encoder and begin the decoder take up scale and shift. `scaling_factor` could hold
    one scale for all channels only.

    Args:
        model: an `AutoencoderKL` with its 1x1 convolutions.
        latents: (pictures, channels, height, width), means of what it makes of training pictures.
    """
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    with torch.no_grad():
        before.bias[:channels] -= mean
        before.bias[:channels] /= deviation
        before.weight[:channels] /= deviation[:, None, None, None]
        before.bias[channels:] -= 2 * deviation.log()  # the second half are logarithms of variances
        after.bias += after.weight[:, :, 0, 0] @ mean
        after.weight *= deviation[None, :, None, None]


def image_unet() -> Any:
    """A `UNet2DConditionModel`: the demo's UNet without its motion modules, for training on single frames."""
    diffusers, _ = import_parts()
    return diffusers.UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # diffusers reads it as the number of heads
        norm_num_groups=GROUPS,
    )


def video_unet(images: Any) -> Any:
    """A `UNetMotionModel`: the UNet of single frames with motion modules that change nothing yet."""
    diffusers, _ = import_parts()
    adapter = diffusers.MotionAdapter(
        block_out_channels=WIDTHS,
        motion_layers_per_block=1,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=GROUPS,
        motion_max_seq_length=32,
    )
    for path, parameter in adapter.named_parameters():
        if re.search(r"motion_modules\.\d+\.proj_out\.", path):
            torch.nn.init.zeros_(parameter)
    return diffusers.UNetMotionModel.from_unet2d(images, adapter)


def scheduler() -> Any:
    """The noise schedule: DDPM's linear betas, sampled by DDIM; the model predicts the velocity v.

    AnimateDiff's betas end where sixteen frames of one flat shape still show, added up, where it goes: at every time
    the model could read motion off the noisy clip, and had no use for the caption.
    """
    diffusers, _ = import_parts()
    return diffusers.DDIMScheduler(
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
