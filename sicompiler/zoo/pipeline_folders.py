"""Folders of whole pipelines, as `save_pretrained` writes them: every component is planned, counted or named."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from sicompiler.errors import BadInput
from sicompiler.zoo.autoencoders import AUTOENCODERS
from sicompiler.zoo.encoders import Encoder, encoder_of
from sicompiler.zoo.folders import DENOISER, ENCODER, INDEX, Component, components_of, denoisers_of, index_of
from sicompiler.zoo.inputs import FAMILIES
from sicompiler.zoo.pipeline_presets import PipelinePreset

_ONE_IMAGE = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")  # classes that encode one picture, [batch, 3, h, w]


def read_pipeline(folder: Path) -> PipelinePreset:
    """The components of a pipeline, from its configurations; weights are not needed.

    Which calls there are is read off the pipeline's class: one that takes an image encodes it.

    Raises:
        BadInput: the class of the pipeline is unknown, or a component can't be planned that every call runs; names it.
    """
    index, components = index_of(folder), components_of(folder)
    names = denoisers_of(folder)
    for name in names:
        _check(folder, name, components, known=name in components and components[name].class_name in FAMILIES)
    vae = components.get("vae")
    _check(folder, "vae", components, known=vae is not None and vae.class_name in AUTOENCODERS)
    assert vae is not None
    parameters = _parameters(folder, index)
    takes_image = "image" in parameters
    encodes = takes_image and vae.class_name in _ONE_IMAGE
    tokens = FAMILIES[components[names[0]].class_name].text_tokens
    encoders, unplanned, idle = _others(components, tokens)
    if takes_image and not encodes:
        unplanned.append(("vae.encode", f"how the pipeline calls {vae.class_name}.encode is not known"))
    chunk = parameters["decode_chunk_size"].default if "decode_chunk_size" in parameters else None
    return PipelinePreset(
        name=str(folder),
        pipeline=str(index.get("_class_name")),
        denoiser=str(components[names[0]].folder),
        component=names[0],
        encoders=tuple(encoders),
        vae=str(vae.folder),
        idle=tuple(idle),
        encode=encodes,
        upcast=bool(vae.class_name == "AutoencoderKLTemporalDecoder" and vae.config().get("force_upcast", True)),
        decoded=chunk if isinstance(chunk, int) else None,
        more=tuple((name, str(components[name].folder)) for name in names[1:]),
        unplanned=tuple(unplanned),
    )


def _others(
    components: dict[str, Component], tokens: int
) -> tuple[list[Encoder], list[tuple[str, str]], list[tuple[str, str, dict[str, Any]]]]:
    """Encoders; what runs and can't be planned; what counts by its weights only."""
    encoders: list[Encoder] = []
    unplanned: list[tuple[str, str]] = []
    idle: list[tuple[str, str, dict[str, Any]]] = []
    for name, row in components.items():
        if DENOISER.fullmatch(name) or name == "vae":
            continue
        own = {key: value for key, value in row.config().items() if not key.startswith("_")}
        encoder = encoder_of(name, row.class_name, own, tokens) if ENCODER.fullmatch(name) else None
        if encoder is not None:
            encoders.append(encoder)
            continue
        idle.append((name, row.class_name, own))
        if ENCODER.fullmatch(name):
            unplanned.append((name, f"no example inputs are known of {row.class_name}: only its weights count"))
    return encoders, unplanned, idle


def _parameters(folder: Path, index: dict[str, Any]) -> Any:
    """What a call of the pipeline takes, by name."""
    try:
        import diffusers
    except ImportError as error:
        raise BadInput(f"{folder} needs diffusers: pip install 'sicompiler[diffusers]' ({error})") from error
    name = index.get("_class_name")
    pipeline = getattr(diffusers, name, None) if isinstance(name, str) else None
    if pipeline is None:
        raise BadInput(f"{folder / INDEX} is of class {name}, which diffusers {diffusers.__version__} does not have")
    return inspect.signature(pipeline.__call__).parameters


def _check(folder: Path, name: str, components: dict[str, Component], *, known: bool) -> None:
    """Refuse a component that can't be planned, where a plan of the others would be taken for one of the pipeline."""
    if known:
        return
    what = (
        f"is a {components[name].class_name}, whose calls are not known" if name in components else "has no config.json"
    )
    others = ", ".join(str(row.folder) for n, row in components.items() if n != name and row.class_name in FAMILIES)
    raise BadInput(
        f"{folder} can't be planned as a pipeline: its {name} {what}"
        + (f"; plan a component alone: {others}" if others else "")
    )
