"""Which pipelines are known to work, and what was tested of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SupportedPipeline:
    """One pipeline class of diffusers that a test runs end to end, tiny and with random weights.

    Attributes:
        name: of the class.
        tested: the methods that were compiled in that test.
        untouched: encoders that may run as they are: a cache among their outputs is captured only where something else
            in the process has told torch about its class.
    """

    name: str
    tested: tuple[str, ...]
    untouched: tuple[str, ...] = ()


_ROWS = (
    SupportedPipeline("AnimateDiffPipeline", ("text_encoder", "unet", "vae.decode")),
    SupportedPipeline("CogVideoXPipeline", ("text_encoder", "transformer", "vae.decode")),
    SupportedPipeline("HunyuanVideoPipeline", ("text_encoder_2", "transformer", "vae.decode"), ("text_encoder",)),
    SupportedPipeline("LTXPipeline", ("text_encoder", "transformer", "vae.decode")),
    SupportedPipeline("StableVideoDiffusionPipeline", ("image_encoder", "vae.encode", "unet", "vae.decode")),
    SupportedPipeline("TextToVideoSDPipeline", ("text_encoder", "unet", "vae.decode")),
    SupportedPipeline("WanPipeline", ("text_encoder", "transformer", "vae.decode")),
)


def supported_pipelines() -> tuple[SupportedPipeline, ...]:
    """The pipelines that are tested. Others are taken over by the names of their components, and may work as well."""
    return _ROWS
