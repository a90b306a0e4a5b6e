"""Which pipelines are known to work, and what was tested of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SupportedPipeline:
    """One pipeline class of diffusers that a test runs end to end, tiny and with random weights.

    Attributes:
        name: of the class.
        tested: the methods that were compiled in that test.
        untouched: encoders that run as they are, within the budget.
        variant: what sets it apart from another row of the same class.
        note: what the test had to do for the stock pipeline to run at all.
    """

    name: str
    tested: tuple[str, ...]
    untouched: tuple[str, ...] = ()
    variant: str = ""
    note: str = ""

    @property
    def label(self) -> str:
        """Unlike that of any other row: the class, and the variant where there is one."""
        return ", ".join(filter(None, (self.name, self.variant)))


_ANIMATEDIFF = ("text_encoder", "unet", "vae.decode")
_TRANSFORMER = ("text_encoder", "transformer", "vae.decode")
_ROWS = (
    SupportedPipeline("AnimateDiffControlNetPipeline", (*_ANIMATEDIFF, "controlnet")),
    SupportedPipeline("AnimateDiffPipeline", _ANIMATEDIFF),
    SupportedPipeline("AnimateDiffVideoToVideoPipeline", (*_ANIMATEDIFF, "vae.encode")),
    SupportedPipeline("CogVideoXImageToVideoPipeline", (*_TRANSFORMER, "vae.encode")),
    SupportedPipeline("CogVideoXPipeline", _TRANSFORMER),
    SupportedPipeline("EasyAnimatePipeline", _TRANSFORMER),
    SupportedPipeline("HunyuanVideoImageToVideoPipeline", (*_TRANSFORMER, "text_encoder_2", "vae.encode")),
    SupportedPipeline("HunyuanVideoPipeline", (*_TRANSFORMER, "text_encoder_2")),
    SupportedPipeline(
        "I2VGenXLPipeline",
        ("text_encoder", "image_encoder", "vae.encode", "unet", "vae.decode"),
        note="with transformers 5 the stock pipeline fails on any text encoder: it reads CLIPTextModel.text_model, "
        "which is gone; tested with a text encoder that has the attribute",
    ),
    SupportedPipeline("Kandinsky5T2VPipeline", (*_TRANSFORMER, "text_encoder_2")),
    SupportedPipeline("LTX2Pipeline", _TRANSFORMER),
    SupportedPipeline("LTXPipeline", _TRANSFORMER),
    SupportedPipeline("MochiPipeline", _TRANSFORMER),
    SupportedPipeline("SanaVideoPipeline", _TRANSFORMER),
    SupportedPipeline("StableVideoDiffusionPipeline", ("image_encoder", "vae.encode", "unet", "vae.decode")),
    SupportedPipeline("TextToVideoSDPipeline", _ANIMATEDIFF),
    SupportedPipeline(
        "WanImageToVideoPipeline",
        ("image_encoder", "vae.encode", "transformer", "vae.decode"),
        note="the prompt given as embeddings, as the stock pipeline fails on words where ftfy is not installed",
    ),
    SupportedPipeline("WanPipeline", _TRANSFORMER),
    SupportedPipeline("WanPipeline", (*_TRANSFORMER, "transformer_2"), variant="two transformers"),
)


def supported_pipelines() -> tuple[SupportedPipeline, ...]:
    """The pipelines that are tested. Others are taken over by the names of their components, and may work as well."""
    return _ROWS
